"""The answers of a load, for an audit: of each photo the different ones, and how often each came."""

import marshal
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from detbench.api.schemas import Inference, ModelDetections

MOST_BYTES = 64_000_000
"""What all processes of a load keep together: some 3,800 answers of 300 detections."""

# Its numbers are binary, and it has no references between values, which would make the bytes of equal answers differ.
_PACKING = 2


class DistinctAnswer(NamedTuple):
    """One of the different answers to a photo; `photo` is the SHA-256 of its file.

    `times` is how often it came, by the replica that gave it; by None of a server that is no cluster.
    """

    photo: str
    detections: list[ModelDetections]
    times: dict[str | None, int]


class DistinctAnswers:
    """Counts the answers of one process of the load generator; equal ones, whatever they took, are kept once.

    Args:
        most_bytes: that are kept. An answer that is beyond them, and not among those kept before, is not counted.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept_bytes = 0
        self._counts: dict[tuple[str, bytes], dict[str | None, int]] = {}

    def add(self, photo: str, answer: Inference) -> None:
        """Count an answer to the photo with this SHA-256."""
        key = photo, _packed(answer)
        if (times := self._counts.get(key)) is not None:
            times[answer.replica] = times.get(answer.replica, 0) + 1
        elif self._kept_bytes + len(key[1]) <= self._most_bytes:
            self._counts[key] = {answer.replica: 1}
            self._kept_bytes += len(key[1])

    def write(self, folder: Path) -> None:
        """Write them into a new file in `folder`, for `read_answers` of the same Python."""
        file, _ = tempfile.mkstemp(dir=folder)
        with os.fdopen(file, "wb") as opened:
            marshal.dump(self._counts, opened)


def read_answers(folder: Path) -> Iterator[DistinctAnswer]:
    """The answers that the processes of a load, or of its parts, wrote into `folder`; what several had is one."""
    counts: defaultdict[tuple[str, bytes], Counter[str | None]] = defaultdict(Counter)
    for path in folder.iterdir():
        for key, times in marshal.loads(path.read_bytes()).items():
            counts[key].update(times)
    for (photo, packed), total in counts.items():
        yield DistinctAnswer(photo, _unpacked(packed), dict(total))


def _packed(answer: Inference) -> bytes:
    """The detections without their times."""
    found = [(each.model_name.encode(), each.boxes, each.scores, each.labels) for each in answer.detections]
    return marshal.dumps(found, _PACKING)


def _unpacked(packed: bytes) -> list[ModelDetections]:
    return [
        ModelDetections(model_name=name.decode(), boxes=boxes, scores=scores, labels=labels)
        for name, boxes, scores, labels in marshal.loads(packed)
    ]
