"""Model sets: those built in, and a user's own."""

from pathlib import Path

import pytest

from detserver.errors import BadConfiguration, UnknownModelSet
from detserver.zoo import Zoo, read_model_sets

GOOD = """
[[model_sets.fishery.models]]
architecture = "tf_efficientdet_d0"
num_classes = 7
weights = "fish.pth"

[[model_sets.fishery.models]]
architecture = "tf_efficientdet_d0"
num_classes = 20

[[model_sets.fishery.models]]
architecture = "tf_efficientdet_d1"
num_classes = 3
name = "small"
"""


def test_mixed_is_three_architectures_and_uniform_is_one():
    zoo = Zoo(None, Path("weights"))
    mixed, uniform = zoo.model_set("mixed"), zoo.model_set("uniform")
    assert [(m.architecture, m.num_classes, m.image_size) for m in mixed.models] == [
        ("tf_efficientdet_d0", 90, 512),
        ("tf_efficientdet_d1", 90, 640),
        ("tf_efficientdet_d2", 90, 768),
    ]
    assert [(m.architecture, m.num_classes) for m in uniform.models] == [
        ("tf_efficientdet_d0", 90),
        ("tf_efficientdet_d0", 7),
        ("tf_efficientdet_d0", 20),
    ]
    assert len({model.name for model in uniform.models}) == 3


def test_an_unknown_set_is_told_with_those_there_are():
    with pytest.raises(UnknownModelSet, match="mixed, uniform"):
        Zoo(None, Path("weights")).model_set("nothing")


def test_a_file_adds_sets(tmp_path: Path):
    (tmp_path / "sets.toml").write_text(GOOD)
    (fishery,) = read_model_sets(tmp_path / "sets.toml", Path("weights"))
    assert [model.name for model in fishery.models] == ["tf_efficientdet_d0_7", "tf_efficientdet_d0_20", "small"]
    assert fishery.models[0].weights_file == Path("weights/fish.pth")
    assert fishery.models[1].weights_file is None
    assert list(Zoo(tmp_path / "sets.toml", Path("weights")).model_sets) == ["mixed", "uniform", "fishery"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not toml", "sets.toml"),
        ("", "model_sets"),
        ("[model_sets.x]\nmodels = []", "model_sets.x.models"),
        (GOOD.replace("tf_efficientdet_d1", "yolo"), "effdet has no model 'yolo'"),
        (GOOD.replace("num_classes = 3", "num_classes = 0"), "num_classes"),
        (GOOD.replace('name = "small"', 'name = "tf_efficientdet_d0_7"'), "2 models called tf_efficientdet_d0_7"),
        (GOOD.replace('name = "small"', 'nmae = "small"'), "nmae"),
        (GOOD.replace('name = "small"', 'name = "../small"'), "name"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_the_place(tmp_path: Path, text: str, reason: str):
    (tmp_path / "sets.toml").write_text(text)
    with pytest.raises(BadConfiguration) as refused:
        read_model_sets(tmp_path / "sets.toml", Path("weights"))
    assert reason in str(refused.value)
