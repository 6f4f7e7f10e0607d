"""Whether two ways of running the networks answer the same."""

from collections.abc import Sequence

import numpy as np

from detserver.postprocess import DetectionOutput, RawOutput

Detections = list[list[DetectionOutput]]
"""For each image what each model found."""


def assert_equal(found: Detections, expected: Detections) -> None:
    """The same boxes, scores and labels but for what float32 sums in another order leave (measured: 0.001 px, 5e-5)."""
    for ours, theirs in zip(found, expected, strict=True):
        for mine, own in zip(ours, theirs, strict=True):
            assert mine.model_name == own.model_name
            good = np.flatnonzero(own.scores >= 0.1)
            assert len(good) >= 3, "a comparison of nothing"
            # Each with its nearest of equal label: where scores are equal but for rounding, their order is open.
            distance = np.abs(own.boxes[good, None] - mine.boxes[None]).max(axis=2)
            nearest = (distance + 1e6 * (own.labels[good, None] != mine.labels)).argmin(axis=1)
            assert len({*nearest}) == len(good)
            assert (mine.labels[nearest] == own.labels[good]).all()
            np.testing.assert_allclose(mine.boxes[nearest], own.boxes[good], rtol=0, atol=0.05)
            np.testing.assert_allclose(mine.scores[nearest], own.scores[good], rtol=0, atol=1e-3)


def assert_raw_close(found: Sequence[RawOutput], expected: Sequence[RawOutput]) -> None:
    """Raw logits and box codes within 1e-4 of the largest of the level."""
    for ours, theirs in zip(found, expected, strict=True):
        for part, reference in zip(ours, theirs, strict=True):
            for level, own in zip(part, reference, strict=True):
                assert level.shape == own.shape
                assert (level - own).abs().max() < 1e-4 * own.abs().max()
