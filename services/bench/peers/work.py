"""What every server does for a request: what detserver's `invalid` does for the model set `mixed`.

A JPEG is decoded, letterboxed and normalised for 512, 640 and 768 pixels, and the answer is constant. `WORK` says how:
`effdet` is effdet's own transform, as one would write it into a server; `detserver` are the functions of detserver, so
that only the serving differs. What comes out is the same, bit for bit.
"""

import io
import os
from pathlib import Path

from detserver import lean_imports

lean_imports.install()

import numpy as np  # noqa: E402 (lean imports come first)
from effdet.data.transforms import ResizePad  # noqa: E402
from PIL import Image  # noqa: E402

from detserver.models.model_sets import Zoo  # noqa: E402
from detserver.preprocess import InputConfig, prepare  # noqa: E402
from detserver.preprocess.decoding import decode  # noqa: E402
from detserver.preprocess.slots import Slots  # noqa: E402

PATH = "/infer/invalid"
MODEL_SET = "mixed"
EFFDET, DETSERVER = "effdet", "detserver"

_MAX_PIXELS = 50_000_000
_SET = Zoo(None, Path("data")).model_set(MODEL_SET)
_SLOTS = Slots(keep=2)

ANSWER = {
    "implementation": "invalid",
    "model_set": MODEL_SET,
    "batch_size": 1,
    "detections": [
        {
            "model_name": spec.name,
            "boxes": [[0.0, 0.0, 100.0, 100.0]],
            "scores": [0.5],
            "labels": [1],
            "inference_time_ms": None,
        }
        for spec in _SET.models
    ],
}


def do_work(data: bytes) -> None:
    """The inputs of the three networks, from the bytes of a file, and away with them."""
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
