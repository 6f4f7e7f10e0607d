"""Model sets: those built in, and a user's own."""

from pathlib import Path

import pytest
import torch

from detserver.errors import BadConfiguration, UnknownModelSet
from detserver.models.model_sets import ModelSpec, Zoo, create_model, read_model_sets
from detserver.preprocess import InputConfig

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
    zoo = Zoo(None, Path("data"))
    mixed, uniform = zoo.model_set("mixed"), zoo.model_set("uniform")
    assert [(m.architecture, m.num_classes, m.input.size) for m in mixed.models] == [
        ("tf_efficientdet_d0", 90, (512, 512)),
        ("tf_efficientdet_d1", 90, (640, 640)),
        ("tf_efficientdet_d2", 90, (768, 768)),
    ]
    assert [(m.architecture, m.num_classes) for m in uniform.models] == [
        ("tf_efficientdet_d0", 90),
        ("tf_efficientdet_d0", 7),
        ("tf_efficientdet_d0", 20),
    ]
    assert len({model.name for model in uniform.models}) == 3


def test_an_unknown_set_is_told_with_those_there_are():
    with pytest.raises(UnknownModelSet, match="mixed, uniform"):
        Zoo(None, Path("data")).model_set("nothing")


def test_a_file_adds_sets(tmp_path: Path):
    (tmp_path / "sets.toml").write_text(GOOD)
    (tmp_path / "fish.pth").touch()
    (fishery,) = read_model_sets(tmp_path / "sets.toml", Path("weights"))
    assert [model.name for model in fishery.models] == ["tf_efficientdet_d0_7", "tf_efficientdet_d0_20", "small"]
    assert fishery.models[0].weights_file == tmp_path / "fish.pth"
    assert fishery.models[1].weights_file is None
    assert list(Zoo(tmp_path / "sets.toml", tmp_path).model_sets) == ["mixed", "uniform", "fishery"]


def test_the_file_in_the_data_folder_is_read_where_no_other_is_named(tmp_path: Path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model_sets.toml").write_text(GOOD)
    (tmp_path / "models" / "fish.pth").touch()
    assert list(Zoo(None, tmp_path).model_sets) == ["mixed", "uniform", "fishery"]
    other = tmp_path / "other.toml"
    other.write_text('[[model_sets.other.models]]\narchitecture = "tf_efficientdet_d0"\nnum_classes = 7')
    assert list(Zoo(other, tmp_path).model_sets) == ["mixed", "uniform", "other"]
    assert list(Zoo(None, tmp_path / "empty").model_sets) == ["mixed", "uniform"]


def test_weights_are_looked_for_beside_the_file_and_then_in_the_weights_folder(tmp_path: Path):
    (tmp_path / "models").mkdir()
    (tmp_path / "weights").mkdir()
    file = tmp_path / "models" / "model_sets.toml"
    file.write_text(GOOD)
    with pytest.raises(BadConfiguration) as refused:
        Zoo(None, tmp_path)
    assert str(refused.value) == (
        f"{file}: model_sets.fishery.models.0.weights: there is no file {tmp_path / 'models' / 'fish.pth'} "
        f"and no file {tmp_path / 'weights' / 'fish.pth'}"
    )
    for folder in ("weights", "models"):
        (tmp_path / folder / "fish.pth").touch()
        assert Zoo(None, tmp_path).model_set("fishery").models[0].weights_file == tmp_path / folder / "fish.pth"


def own(tmp_path: Path, lines: str) -> ModelSpec:
    file = tmp_path / "sets.toml"
    file.write_text(f'[[model_sets.own.models]]\narchitecture = "tf_efficientdet_d0"\nnum_classes = 3\n{lines}')
    return read_model_sets(file, tmp_path)[0].models[0]


def test_effdets_keys_are_the_models_configuration(tmp_path: Path):
    spec = own(
        tmp_path,
        "image_size = [256, 384]\nanchor_scale = 3\naspect_ratios = [[1.0, 1.0], [2.0, 0.5]]\nnum_scales = 2\n"
        "redundant_bias = false\nhead_bn_level_first = true\nfpn_name = 'qufpn_fa'\nmax_det_per_image = 20\n"
        "mean = 0.5\nstd = [0.1, 0.2, 0.3]\ninterpolation = 'bilinear'\nfill_color = 7\n",
    )
    config = spec.config()
    assert (tuple(config.image_size), config.anchor_scale, config.num_scales, config.max_det_per_image) == (
        (256, 384),
        3,
        2,
        20,
    )
    assert (config.redundant_bias, config.head_bn_level_first, config.fpn_name) == (False, True, "qufpn_fa")
    assert spec.input == InputConfig((256, 384), (0.5, 0.5, 0.5), (0.1, 0.2, 0.3), "bilinear", (7, 7, 7))
    outputs, _ = create_model(spec).eval()(torch.zeros(1, 3, 256, 384))
    assert outputs[0].shape == (1, 2 * 2 * 3, 32, 48)


def test_what_is_the_architectures_own_is_no_difference(tmp_path: Path):
    spec = own(tmp_path, "image_size = 512\nanchor_scale = 4.0\nfpn_name = 'bifpn_fa'\nredundant_bias = true\n")
    assert spec == ModelSpec("tf_efficientdet_d0", "tf_efficientdet_d0", 3)
    assert own(tmp_path, "image_size = 640").input.size == (640, 640)


def test_a_picture_of_few_anchors_has_no_more_candidates_than_there_are(tmp_path: Path):
    """effdet's top-k of 5000 fails where there are less."""
    assert own(tmp_path, "image_size = 128\nnum_scales = 1").config().max_detection_points == 341 * 3 * 3


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("image_sise = 640", "models.0.image_sise: there is no such key; there are image_size, mean, std"),
        ("soft_nms = true", "models.0.soft_nms: there is no such key"),
        ("image_size = [512]", "models.0.image_size"),
        ("image_size = 64", "models.0.image_size"),
        ("fpn_name = 'fpn'", "models.0.fpn_name"),
        ("mean = 123.7", "models.0.mean"),
        ("anchor_scale = [4.0, 4.0]", "effdet cannot run tf_efficientdet_d0 with this anchor_scale"),
        ("act_type = 'swich'", "effdet cannot run tf_efficientdet_d0 with this act_type"),
        ("backbone_name = 'b0'", "effdet cannot run tf_efficientdet_d0 with this backbone_name"),
    ],
)
def test_a_configuration_that_is_none_of_effdets_is_told_with_its_key(tmp_path: Path, lines: str, reason: str):
    with pytest.raises(BadConfiguration) as refused:
        own(tmp_path, lines)
    assert reason in str(refused.value)
    assert "sets.toml: model_sets.own.models.0" in str(refused.value)
    assert "\n" not in str(refused.value)


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
    (tmp_path / "fish.pth").touch()
    with pytest.raises(BadConfiguration) as refused:
        read_model_sets(tmp_path / "sets.toml", Path("weights"))
    assert reason in str(refused.value)
