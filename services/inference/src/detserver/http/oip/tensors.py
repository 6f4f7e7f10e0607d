"""The tensors of a model: one picture in, the detections of all detectors of the set out, one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detserver.postprocess import DetectionOutput


@dataclass(frozen=True)
class Tensor:
    """An output.

    Attributes:
        shape: -1 stands for the number of detections.
        values: an array of `shape` with the tensor's own type, little-endian and contiguous.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Callable[[Sequence[DetectionOutput]], NDArray[Any]]


@dataclass(frozen=True)
class Input:
    """An input of `shape`."""

    name: str
    datatype: str
    shape: tuple[int, ...]


IMAGE = Input("image", "BYTES", (1,))
"""The file of one picture: JPEG, PNG, WebP or BMP."""

OUTPUTS = (
    Tensor(
        "boxes",
        "FP32",
        (-1, 4),
        lambda found: np.concatenate([each.boxes.reshape(-1, 4) for each in found], dtype="<f4"),
    ),
    Tensor("scores", "FP32", (-1,), lambda found: np.concatenate([each.scores for each in found], dtype="<f4")),
    Tensor("labels", "INT64", (-1,), lambda found: np.concatenate([each.labels for each in found], dtype="<i8")),
    Tensor(
        "model",
        "INT32",
        (-1,),
        lambda found: np.repeat(np.arange(len(found), dtype="<i4"), [len(each.scores) for each in found]),
    ),
)
"""By model in the order of the set, which `model` counts from 0, and by descending score of each."""
