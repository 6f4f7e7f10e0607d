"""Models that were trained otherwise: every implementation gives baseline's answers, and baseline gives effdet's."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from effdet_directly import effdet_rows
from PIL import Image

from detserver.implementations import Registry
from detserver.implementations.base import DetectionOutput
from detserver.models.model_sets import ModelSet, read_model_sets
from detserver.models.weights import WeightsStore
from detserver.postprocess import PostProcessor
from detserver.preprocess import PreparedImage, prepare
from detserver.recipes.build import why_not
from detserver.recipes.recipe import Recipe
from detserver.recipes.stacks import groups

# In one process, so that the models are made once.
pytestmark = pytest.mark.xdist_group("configured")

# Two that stack, though their anchors and classes differ; one of another mean, one of another network, and one with
# fewer (anchor, class) pairs than the 5000 that effdet looks at.
TOML = """
[[model_sets.otherwise.models]]
architecture = "tf_efficientdet_d0"
num_classes = 7
name = "a"
image_size = [128, 256]
anchor_scale = 3.0
num_scales = 2
head_bn_level_first = true

[[model_sets.otherwise.models]]
architecture = "tf_efficientdet_d0"
num_classes = 3
name = "b"
image_size = [128, 256]
anchor_scale = 5.0
num_scales = 2
head_bn_level_first = true
max_det_per_image = 20
max_detection_points = 600

[[model_sets.otherwise.models]]
architecture = "tf_efficientdet_d0"
num_classes = 3
name = "other_mean"
image_size = [128, 256]
num_scales = 2
head_bn_level_first = true
mean = 0.5

[[model_sets.otherwise.models]]
architecture = "tf_efficientdet_d0"
num_classes = 3
name = "other_network"
image_size = [128, 256]
redundant_bias = false
fpn_name = "bifpn_sum"

[[model_sets.otherwise.models]]
architecture = "tf_efficientdet_lite0"
num_classes = 1
name = "small"
image_size = 128
num_scales = 1
"""
CHANGED = {
    "a": {"image_size": (128, 256), "anchor_scale": 3.0, "num_scales": 2, "head_bn_level_first": True},
    "b": {"image_size": (128, 256), "anchor_scale": 5.0, "num_scales": 2, "head_bn_level_first": True}
    | {"max_det_per_image": 20, "max_detection_points": 600},
    "other_mean": {"image_size": (128, 256), "num_scales": 2, "head_bn_level_first": True, "mean": (0.5, 0.5, 0.5)},
    "other_network": {"image_size": (128, 256), "redundant_bias": False, "fpn_name": "bifpn_sum"},
    "small": {"image_size": (128, 128), "num_scales": 1, "max_detection_points": 341 * 3},
}


@pytest.fixture(scope="module")
def model_set(tmp_path_factory: pytest.TempPathFactory) -> ModelSet:
    file = tmp_path_factory.mktemp("sets") / "sets.toml"
    file.write_text(TOML)
    (found,) = read_model_sets(file, file.parent)
    return found


@pytest.fixture(scope="module")
def images(photos: list[Path], model_set: ModelSet) -> list[PreparedImage]:
    return [prepare(Image.open(photo).convert("RGB"), model_set.inputs) for photo in photos[:2]]


@pytest.fixture(scope="module")
def expected(store: WeightsStore, model_set: ModelSet, images: list[PreparedImage]) -> list[list[DetectionOutput]]:
    return answers("baseline", store, model_set, images)


@torch.inference_mode()
def answers(
    name: str, store: WeightsStore, model_set: ModelSet, images: list[PreparedImage]
) -> list[list[DetectionOutput]]:
    built = Registry().get(name)(model_set, store, torch.device("cpu"))
    built.load()
    return built.predict_batch(images)


def test_what_has_equal_networks_and_inputs_stacks(model_set: ModelSet):
    assert [len(group) for group in groups(model_set.models)] == [2, 1, 1, 1]
    grouped = Recipe(fold=True, stack="grouped", postprocess="batched")
    assert why_not(grouped, model_set=model_set) is None
    alone = ModelSet("alone", model_set.models[1:4])
    assert "equal inputs" in str(why_not(grouped, model_set=alone))
    assert len(model_set.inputs) == 3, "a, b and other_network share one"
    assert len({spec.identity for spec in model_set.models}) == 5, "files of one are not another's"


@pytest.mark.slow
def test_baseline_is_effdet(store: WeightsStore, model_set: ModelSet, photos: list[Path], expected):
    for photo, outputs in zip(photos, expected, strict=False):
        for spec, output in zip(model_set.models, outputs, strict=True):
            state = store.get(spec).state_dict
            rows = effdet_rows(spec.architecture, spec.num_classes, state, photo, CHANGED[spec.name])
            assert len(rows) == (20 if spec.name == "b" else len(rows)) > 0
            np.testing.assert_allclose(output.boxes, rows[:, :4], rtol=0, atol=1e-3, err_msg=spec.name)
            np.testing.assert_allclose(output.scores, rows[:, 4], rtol=0, atol=1e-5, err_msg=spec.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["postprocess", "folded", "vmap", "grouped", "openvino", "invalid"])
def test_every_implementation_gives_baselines_answers(name: str, store: WeightsStore, model_set, images, expected):
    if name == "openvino" and find_spec("openvino") is None:
        pytest.skip("the extra openvino is not installed")
    found = answers(name, store, model_set, images)
    if name == "invalid":
        assert [len(output.boxes) for output in found[0]] == [1] * 5
        return
    for ours, theirs in zip(found, expected, strict=True):
        for mine, own in zip(ours, theirs, strict=True):
            # Below that, which boxes are left depends on ties that rounding breaks.
            high = own.scores >= 0.1
            assert high.sum() >= 1, own.model_name
            assert len(mine.scores) == len(own.scores), own.model_name
            count = int(high.sum())
            assert mine.labels[:count].tolist() == own.labels[:count].tolist()
            np.testing.assert_allclose(mine.scores[:count], own.scores[:count], rtol=0, atol=1e-3)
            np.testing.assert_allclose(mine.boxes[:count], own.boxes[:count], rtol=0, atol=0.05)


def test_anchors_are_those_of_the_model(model_set: ModelSet):
    processor = PostProcessor(model_set.models, torch.device("cpu"))
    counts = [len(anchors) for anchors in processor._anchors]
    cells = 16 * 32 + 8 * 16 + 4 * 8 + 2 * 4 + 1 * 2
    assert counts == [cells * 6, cells * 6, cells * 6, cells * 9, 341 * 3]
