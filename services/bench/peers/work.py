"""What every server does for a request, whatever serves it.

A JPEG is decoded, letterboxed and normalised for the inputs of a model set, and the detectors of the set run on it.
`MODEL` says how they run: `invalid` is no model and a constant answer, every other name an implementation of detserver.
`WORK` says how pictures are prepared: `effdet` is effdet's own transform, as one would write it into a server;
`detserver` are the functions of detserver, so that only the serving differs. What comes out is the same, bit for bit.
"""

import io
import os
from pathlib import Path
from typing import Any

from detserver import lean_imports

lean_imports.install()

import numpy as np  # noqa: E402 (lean imports come first)
import torch  # noqa: E402
from effdet.data.transforms import ResizePad  # noqa: E402
from PIL import Image  # noqa: E402

from detserver.http.oip.tensors import OUTPUTS  # noqa: E402
from detserver.implementations import Registry  # noqa: E402
from detserver.machine.device import use_ieee_float32  # noqa: E402
from detserver.models.model_sets import Zoo  # noqa: E402
from detserver.models.weights import WeightsStore  # noqa: E402
from detserver.postprocess import DetectionOutput  # noqa: E402
from detserver.preprocess import InputConfig, prepare  # noqa: E402
from detserver.preprocess.decoding import decode  # noqa: E402
from detserver.preprocess.slots import Slots  # noqa: E402
from detserver.settings import Settings  # noqa: E402

EFFDET, DETSERVER = "effdet", "detserver"
INVALID = "invalid"

MODEL = os.environ.get("MODEL", INVALID)
MODEL_SET = os.environ.get("MODEL_SET", "mixed")
PATH = f"/infer/{MODEL}"

_MAX_PIXELS = 50_000_000
_SET = Zoo(None, Path("data")).model_set(MODEL_SET)
_SLOTS = Slots(keep=2)

_CONSTANT = [
    DetectionOutput(spec.name, np.float32([[0, 0, 100, 100]]), np.float32([0.5]), np.int64([1])) for spec in _SET.models
]


class Detector:
    """The detectors of the set, for one thread. It uses a share of the cores, as each of `WORKERS` does."""

    def __init__(self) -> None:
        self._implementation = None
        if MODEL == INVALID:
            return
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ["WORKERS"])))
        use_ieee_float32()
        settings = Settings()
        weights = WeightsStore(settings.weights_dir, settings.cache_dir, settings.seed, settings.weights_download)
        self._implementation = Registry().get(MODEL)(_SET, weights, torch.device("cpu"))
        self._implementation.prepare()
        with torch.inference_mode():
            self._implementation.load()

    def __call__(self, data: bytes) -> list[DetectionOutput]:
        """What each detector finds in the picture of a file."""
        if self._implementation is None:
            do_work(data)
            return _CONSTANT
        with torch.inference_mode():
            return self._implementation.predict(prepare(decode(data, _MAX_PIXELS), _SET.inputs, slots=_SLOTS))


def as_json(found: list[DetectionOutput]) -> dict[str, Any]:
    """An answer as detserver's own API has it."""
    return {
        "implementation": MODEL,
        "model_set": MODEL_SET,
        "total_inference_time_ms": 0.0,
        "timings_ms": {},
        "batch_size": 1,
        "detections": [
            {
                "model_name": each.model_name,
                "boxes": each.boxes.tolist(),
                "scores": each.scores.tolist(),
                "labels": each.labels.tolist(),
            }
            for each in found
        ],
    }


def as_tensors(found: list[DetectionOutput]) -> dict[str, np.ndarray]:
    """An answer as the tensors of a detserver, by name."""
    return {tensor.name: tensor.values(found) for tensor in OUTPUTS}


def do_work(data: bytes) -> None:
    """The inputs of the networks, from the bytes of a file, and away with them."""
    if os.environ["WORK"] == DETSERVER:
        prepare(decode(data, _MAX_PIXELS), _SET.inputs, slots=_SLOTS)
        return
    image = Image.open(io.BytesIO(data)).convert("RGB")
    for config in _SET.inputs:
        by_effdet(image, config)


def by_effdet(image: Image.Image, config: InputConfig) -> np.ndarray:
    """The picture letterboxed by effdet, and normalised as its loader does: float32 (3, height, width)."""
    padded, _ = ResizePad(config.size, config.interpolation, config.fill_color)(image, {})
    # In this order and in place it takes a fourth of the time of the other one.
    pixels = np.asarray(padded).transpose(2, 0, 1).astype(np.float32, order="C")
    mean, std = (
        np.array([255 * each for each in values], np.float32)[:, None, None] for values in (config.mean, config.std)
    )
    pixels -= mean
    pixels /= std
    return pixels
