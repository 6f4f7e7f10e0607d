"""Checkpoints as people have them: what was wrapped around the weights, and what they were trained with otherwise."""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from effdet import DetBenchPredict, DetBenchTrain, create_model_from_config, get_efficientdet_config
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from detserver.errors import WeightsRefused
from detserver.models.checkpoint import StateDict, read_checkpoint
from detserver.models.configuration import overrides
from detserver.models.model_sets import ModelSpec

LITE0 = "tf_efficientdet_lite0"
SPEC = ModelSpec("fish", LITE0, 3)


def network(architecture: str = LITE0, num_classes: int = 3, **changed: Any) -> nn.Module:
    config = get_efficientdet_config(architecture)
    for key, value in changed.items():
        config[key] = value
    config.num_levels = config.max_level - config.min_level + 1
    torch.manual_seed(1)
    return create_model_from_config(config, num_classes=num_classes, pretrained_backbone=False)


def otherwise(**changed: Any) -> ModelSpec:
    return ModelSpec("fish", LITE0, 3, overrides=overrides(LITE0, changed))


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def weights(lite0: nn.Module) -> StateDict:
    return {key: value.clone() for key, value in lite0.state_dict().items()}


def prefixed(weights: StateDict, prefix: str) -> StateDict:
    return {f"{prefix}{key}": value for key, value in weights.items()}


def of_effdets_script(model: nn.Module, folder: Path) -> Path:
    """As effdet's train.py: timm's saver with the script's options, averaged weights, and a metric of numpy."""
    bench = DetBenchTrain(model)
    ema = ModelEmaV3(bench)
    with torch.no_grad():
        for parameter in bench.parameters():
            parameter.add_(1)  # the last step; the average still has the weights before it
    saver = CheckpointSaver(
        bench,
        torch.optim.SGD(bench.parameters(), lr=0.1, momentum=0.9),
        args=argparse.Namespace(model=LITE0, lr=0.1, model_ema=True),
        model_ema=ema,
        checkpoint_dir=str(folder),
    )
    saver.save_checkpoint(3, metric=np.float64(0.123))
    return folder / "model_best.pth.tar"


def of_lightning(weights: StateDict) -> Mapping[str, Any]:
    bench = prefixed(prefixed(weights, "model."), "model.") | {
        "model.anchors.boxes": DetBenchTrain(network()).anchors.boxes
    }
    return {
        "epoch": 4,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": bench | {"criterion.weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"lr": np.float32(0.1), "args": argparse.Namespace(batch=8), "seed": np.int64(3)},
    }


WRAPPED: dict[str, Callable[[StateDict], Any]] = {
    "plain": lambda weights: weights,
    "effdet's bench for training": lambda weights: DetBenchTrain(loaded(weights)).state_dict(),
    "effdet's bench for prediction": lambda weights: DetBenchPredict(loaded(weights)).state_dict(),
    "torch.compile": lambda weights: torch.compile(loaded(weights)).state_dict(),
    "a bench with a compiled network": lambda weights: compiled_inside(loaded(weights)).state_dict(),
    "DataParallel": lambda weights: nn.DataParallel(DetBenchTrain(loaded(weights))).state_dict(),
    "DataParallel of what is compiled": lambda weights: nn.DataParallel(torch.compile(loaded(weights))).state_dict(),
    "Lightning": of_lightning,
    "IceVision": lambda weights: {
        "state_dict": DetBenchTrain(loaded(weights)).state_dict(),
        "meta": {"model_name": "ross.efficientdet", "backbone_name": LITE0, "classes": ["a", "b"], "img_size": 320},
    },
    "a notebook": lambda weights: {"model_state_dict": weights, "best_summary_loss": np.float64(0.4), "epoch": 1},
    "an average beside the weights": lambda weights: {
        "state_dict": {key: torch.zeros_like(value) for key, value in weights.items()},
        "state_dict_ema": prefixed(weights, "module.model."),
    },
    "an average in one module with the weights": lambda weights: {
        "state_dict": prefixed({key: torch.zeros_like(value) for key, value in weights.items()}, "model.")
        | prefixed(weights, "model_ema.module."),
    },
    "one network under two names": lambda weights: prefixed(weights, "net.") | prefixed(weights, "bench.model."),
    "half precision": lambda weights: {key: value.half() for key, value in weights.items()},
}


def loaded(weights: StateDict) -> nn.Module:
    model = network()
    model.load_state_dict(weights)
    return model


def compiled_inside(model: nn.Module) -> nn.Module:
    bench = DetBenchTrain(model)
    bench.model = torch.compile(model)
    return bench


def assert_equal(found: StateDict, expected: StateDict, tolerance: float = 0) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key].float(), value.float(), rtol=tolerance, atol=tolerance), key


@pytest.mark.parametrize(
    "wrapping", [pytest.param(each, marks=[pytest.mark.slow] if "compile" in each else []) for each in WRAPPED]
)
def test_whatever_was_wrapped_around_it_the_weights_are_found(weights: StateDict, tmp_path: Path, wrapping: str):
    torch.save(WRAPPED[wrapping](weights), tmp_path / "fish.pth")
    found = read_checkpoint(tmp_path / "fish.pth", SPEC)
    assert_equal(found, weights, tolerance=1e-3 if wrapping == "half precision" else 0)


def test_effdets_own_training_script_is_read_by_its_averaged_weights(weights: StateDict, tmp_path: Path):
    assert_equal(read_checkpoint(of_effdets_script(loaded(weights), tmp_path), SPEC), weights)


def test_prefixes_are_taken_off_in_safetensors_too(weights: StateDict, tmp_path: Path):
    save_file(prefixed(weights, "model."), tmp_path / "fish.safetensors")
    assert_equal(read_checkpoint(tmp_path / "fish.safetensors", SPEC), weights)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"epoch": 3}, "no named tensors"),
        ([1, 2], "no named tensors"),
        ({"state_dict": {"layer1.weight": torch.ones(1)}}, "is no EfficientDet .* called layer1.weight"),
        ({"a.fpn.x": torch.ones(1), "b.fpn.x": torch.zeros(1)}, r"2 networks, with the prefixes 'a\.', 'b\.'"),
        ({"backbone.conv_stem.weight": torch.ones(1)}, "tensors differ, first"),
    ],
)
def test_what_is_no_such_network_is_told_by_what_it_is(content: object, reason: str, tmp_path: Path):
    torch.save(content, tmp_path / "fish.pth")
    with pytest.raises(WeightsRefused, match=reason):
        read_checkpoint(tmp_path / "fish.pth", SPEC)


class Evil:
    """Unpickled, it would call `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("where", ["args", "metric", "state_dict"])
def test_code_beside_what_is_harmless_is_not_run(weights: StateDict, tmp_path: Path, where: str):
    checkpoint = {"state_dict": weights, "args": argparse.Namespace(lr=1), "metric": np.float64(0.1)}
    torch.save(checkpoint | {where: Evil(Path.touch, tmp_path / "run")}, tmp_path / "fish.pth")
    with pytest.raises(WeightsRefused, match="cannot be read as weights of fish"):
        read_checkpoint(tmp_path / "fish.pth", SPEC)
    torch.save(checkpoint | {where: Evil(exec, "raise SystemExit")}, tmp_path / "fish.pth")
    with pytest.raises(WeightsRefused, match="cannot be read as weights of fish"):
        read_checkpoint(tmp_path / "fish.pth", SPEC)
    assert not (tmp_path / "run").exists()


CHANGES: dict[str, dict[str, Any]] = {
    "num_scales = 2": {"num_scales": 2},
    "redundant_bias = false": {"redundant_bias": False},
    "head_bn_level_first = true": {"head_bn_level_first": True},
    'fpn_name = "bifpn_fa"': {"fpn_name": "bifpn_fa"},
    'fpn_name = "qufpn_sum"': {"fpn_name": "qufpn_sum"},
    "max_level = 6": {"max_level": 6},
    "fpn_channels = 48": {"fpn_channels": 48},
    "separable_conv = false": {"separable_conv": False},
    "apply_resample_bn = false": {"apply_resample_bn": False},
    "num_classes = 20": {"num_classes": 20},
    "box_class_repeats = 2": {"box_class_repeats": 2, "fpn_cell_repeats": 2, "redundant_bias": False},
}


@pytest.mark.parametrize("told", CHANGES)
def test_what_the_shapes_contradict_is_refused_by_its_key_and_loads_once_it_is_written(tmp_path: Path, told: str):
    changed = CHANGES[told]
    torch.save(network(**changed).state_dict(), tmp_path / "fish.pth")
    with pytest.raises(WeightsRefused) as refused:
        read_checkpoint(tmp_path / "fish.pth", SPEC)
    message = str(refused.value)
    assert f"the file looks like {told}, and the configuration says" in message
    assert message.count("looks like") == len(changed)
    assert "tensors differ" not in message
    assert "\n" not in message
    rest = {key: value for key, value in changed.items() if key != "num_classes"}
    spec = ModelSpec("fish", LITE0, changed.get("num_classes", 3), overrides=overrides(LITE0, rest))
    read_checkpoint(tmp_path / "fish.pth", spec)


def test_another_architecture_is_told_by_its_name(tmp_path: Path):
    torch.save(network("tf_efficientdet_d1", 7).state_dict(), tmp_path / "fish.pth")
    with pytest.raises(WeightsRefused) as refused:
        read_checkpoint(tmp_path / "fish.pth", SPEC)
    assert 'architecture = "tf_efficientdet_d1 or tf_efficientdet_d1_ap"' in str(refused.value)
    assert "num_classes = 7" in str(refused.value)


@pytest.mark.parametrize(
    ("trained", "told"),
    [
        ({"anchor_scale": 4.5}, "anchor_scale = 4.5, and the configuration says 3"),
        ({"image_size": (384, 512)}, "image_size = [384, 512], and the configuration says [320, 320]"),
        ({"image_size": (256, 256), "anchor_scale": 2.0}, "anchor_scale = 2, and the configuration says 3"),
        ({"aspect_ratios": [(1.0, 1.0), (2.0, 0.5), (0.5, 2.0)]}, "aspect_ratios = [[1, 1], [2, 0.5], [0.5, 2]]"),
        ({"aspect_ratios": [(1.0, 1.0)] * 3, "anchor_scale": [4.0, 3, 3, 3, 3]}, "the anchors that it stores are not"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_stored_anchors_tell_what_shapes_cannot(trained: dict[str, Any], told: str, dtype: torch.dtype, tmp_path: Path):
    state = {key: value.to(dtype) for key, value in DetBenchTrain(network(**trained)).state_dict().items()}
    torch.save(state, tmp_path / "fish.pth")
    with pytest.raises(WeightsRefused) as refused:
        read_checkpoint(tmp_path / "fish.pth", SPEC)
    assert told in str(refused.value)
    read_checkpoint(tmp_path / "fish.pth", otherwise(**trained))


def test_a_file_that_only_its_owner_may_read_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "fish.safetensors"
    path.touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(WeightsRefused, match=r"may not be read by the user of the server; chmod a\+r fish.safetensors"):
        read_checkpoint(path, SPEC)
