"""The calibrated random weights: reproducible, well conditioned, and with scores like a trained detector's."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import skimage
import torch
from effdet.bench import DetBenchPredict
from PIL import Image
from torch import nn

from detserver.models.calibrate import _DepthwiseByShifts, calibrated_state_dict
from detserver.models.configuration import input_config
from detserver.models.model_sets import BUILT_IN, ModelSpec, create_model
from detserver.models.weights import WeightsStore
from detserver.preprocess import Picture, letterbox
from detserver.settings import Settings

# Of the model sets that every figure in docs/results was measured with.
FINGERPRINTS = {
    ("tf_efficientdet_d0", 90): "3e623b3995b23919ddef1bcbe9c31b64e89c9dce016649babd79eb27e796f779",
    ("tf_efficientdet_d1", 90): "55ddb8d5aac28894baf8b792d1af2ca85897aa12e41ce9fc65ba224030e58c6d",
    ("tf_efficientdet_d2", 90): "d3fadbf0ff3feb5d03f2645cbf81ae1f0ca39dbc793b56d3135638fb6c108a61",
    ("tf_efficientdet_d0", 7): "b42dd6180918622afb40020f3eb266aaccf5fa761de5e0fd4ea0506a036d799b",
    ("tf_efficientdet_d0", 20): "f167e85715b3315e16c786dfb491b5231d7b2b5363abdc2bd0651d7400656eed",
}

Detector = Callable[[str, int], DetBenchPredict]

SEED = Settings().seed
OFFSETS = {(model.architecture, model.num_classes): model.seed_offset for each in BUILT_IN for model in each.models}
D0, D1, D2 = (f"tf_efficientdet_d{index}" for index in range(3))
# Quick are those whose weights other quick tests have, too: making some takes ten seconds or more.
MODELS = [(D0, 90), (D0, 7), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((D0, 20), (D1, 90), (D2, 90)))]
PHOTOS = [
    Path(skimage.__file__).parent / "data" / name
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
]
TESTDATA = Path(__file__).parents[4] / "shared" / "testdata"


@pytest.fixture(scope="session")
def detector(store: WeightsStore) -> Detector:
    """What effdet answers with the weights of a model of the built-in sets."""

    @cache
    def with_weights(architecture: str, num_classes: int) -> DetBenchPredict:
        spec = ModelSpec("", architecture, num_classes, seed_offset=OFFSETS[architecture, num_classes])
        return DetBenchPredict(store.model(spec)).eval()

    return with_weights


def model_input(path: Path, bench: DetBenchPredict) -> torch.Tensor:
    return letterbox(Picture.of(Image.open(path).convert("RGB")), input_config(bench.config)).pixels[None]


def assert_scores_are_spread(bench: DetBenchPredict, photo: Path) -> None:
    with torch.no_grad():
        detections = bench(model_input(photo, bench))[0]
    detections = detections[detections[:, 5] > 0]  # what is left is padding
    scores = detections[:, 4]
    standing_out = scores >= 0.1
    assert 3 <= standing_out.sum() <= 100, photo.name
    assert scores[0] >= 0.9, photo.name
    assert scores[-1] <= 0.05, photo.name
    assert (scores[:-1] - scores[1:])[:19].min() > 1e-6, photo.name
    assert len(detections[standing_out, 5].unique()) > 1, photo.name


def logits(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        classes, _ = model(image)
    return torch.cat([level.flatten() for level in classes])


@pytest.mark.parametrize("num_classes", [90, 7])
@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_a_few_boxes_stand_out_in_a_photograph(detector: Detector, photo: Path, num_classes: int) -> None:
    assert_scores_are_spread(detector(D0, num_classes), photo)


@pytest.mark.skipif(not TESTDATA.is_dir(), reason=f"{TESTDATA} is absent")
@pytest.mark.parametrize(("architecture", "num_classes"), MODELS)
def test_a_few_boxes_stand_out_in_photographs_of_every_kind(
    detector: Detector, architecture: str, num_classes: int
) -> None:
    photos = [path for folder in ("aquarium", "coco_val2017") for path in sorted((TESTDATA / folder).glob("images/*"))]
    for photo in photos[:: len(photos) // 5]:
        assert_scores_are_spread(detector(architecture, num_classes), photo)


@pytest.mark.parametrize(("architecture", "num_classes"), MODELS)
def test_the_weights_of_the_built_in_sets_are_those_that_figures_were_measured_with(
    store: WeightsStore, architecture: str, num_classes: int
) -> None:
    (model, *_) = (
        model
        for each in BUILT_IN
        for model in each.models
        if (model.architecture, model.num_classes) == (architecture, num_classes)
    )
    assert store.get(model).fingerprint == FINGERPRINTS[architecture, num_classes]


@pytest.mark.slow
def test_weights_do_not_depend_on_the_process_or_its_number_of_threads(detector: Detector) -> None:
    hashes = {
        subprocess.run(
            [sys.executable, "-W", "ignore", __file__],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert hashes == {weights_hash(detector(D0, 7).model.state_dict())}


def weights_hash(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def test_float32_scores_are_those_of_float64_but_for_rounding(detector: Detector) -> None:
    bench = detector(D0, 90)
    exact = create_model(ModelSpec("", D0, 90))
    exact.load_state_dict(bench.model.state_dict())
    exact.double().eval()
    for photo in PHOTOS[:2]:
        image = model_input(photo, bench)
        expected, rounded = logits(exact, image.double()), logits(bench.model, image)
        # About 100 convolutions in a row, each of which rounds (2^-24) what it adds up; those errors are independent.
        assert (rounded - expected).norm() / expected.norm() < 2**-24 * 100, photo.name
        errors = (rounded.sigmoid() - expected.sigmoid())[expected.sigmoid() >= 0.1]
        # What an implementation's scores may differ by from the baseline's; the weights must not use it up.
        assert errors.square().mean() < 2.5e-10, photo.name


def test_no_channel_of_the_network_is_dead(detector: Detector) -> None:
    bench = detector(D0, 90)
    spreads: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, name=name: spreads.update({name: output.std(dim=(0, 2, 3)).min().item()})
        )
        for name, module in bench.model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        bench.model(torch.cat([model_input(photo, bench) for photo in PHOTOS]))
    for hook in hooks:
        hook.remove()
    assert min(spreads.values()) > 1e-3, min(spreads, key=lambda name: spreads[name])


@pytest.mark.slow
def test_another_seed_or_another_number_of_classes_gives_another_backbone(detector: Detector) -> None:
    stems = [
        calibrated_state_dict(ModelSpec("", D0, classes), seed)["backbone.conv_stem.weight"]
        for classes, seed in ((7, 1), (8, 2))
    ]
    stems.append(detector(D0, 7).model.backbone.conv_stem.weight.data)
    assert not any(torch.equal(stems[first], stems[second]) for first, second in ((0, 1), (1, 2), (0, 2)))


if __name__ == "__main__":
    sys.stdout.write(weights_hash(calibrated_state_dict(ModelSpec("", D0, 7), SEED + OFFSETS[D0, 7])))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (5, 1, 2), (5, 2, 2), (3, 2, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_depthwise_convolutions_by_shifts_are_torchs(kernel: int, stride: int, padding: int, bias: bool):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 6, 17, 22, dtype=torch.float64, generator=generator)
    conv = torch.nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=bias).double()
    with torch.no_grad():
        expected = conv(inputs)
        with _DepthwiseByShifts():
            found = conv(inputs)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)
