"""The tensors of a model: one picture in, the detections of all detectors of the set out, one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from detserver.postprocess import DetectionOutput


@dataclass(frozen=True)
class Input:
    """An input of `shape`."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """An output.

    Attributes:
        shape: -1 stands for the number of detections.
        dtype: of its binary form.
        of: the rows of one detector, given what it found and its place in the set.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    dtype: DTypeLike
    of: Callable[[DetectionOutput, int], NDArray[Any]]

    def flat(self, outputs: Sequence[DetectionOutput]) -> list[Any]:
        """All values, row by row."""
        # Without numpy's functions on arrays of all detectors: several of them let go of Python's lock, and the event
        # loop waits until the decoding threads give it back.
        return [value for place, found in enumerate(outputs) for value in self.of(found, place).ravel().tolist()]

    def values(self, outputs: Sequence[DetectionOutput]) -> NDArray[Any]:
        """An array of `shape` and `dtype`, contiguous."""
        rows = [self.of(found, place) for place, found in enumerate(outputs)]
        return np.concatenate(rows, dtype=self.dtype).reshape(self.shape)


IMAGE = Input("image", "BYTES", (1,))
"""The file of one picture: JPEG, PNG, WebP or BMP."""

OUTPUTS = (
    Tensor("boxes", "FP32", (-1, 4), "<f4", lambda found, _: found.boxes),
    Tensor("scores", "FP32", (-1,), "<f4", lambda found, _: found.scores),
    Tensor("labels", "INT64", (-1,), "<i8", lambda found, _: found.labels),
    Tensor("model", "INT32", (-1,), "<i4", lambda found, place: np.full(len(found.scores), place)),
)
"""By model in the order of the set, which `model` counts from 0, and by descending score of each."""
