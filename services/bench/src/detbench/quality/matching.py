"""Assigning the detections of two outputs to each other, and the output error that follows.

Definitions: docs/measuring.md, "Output error".
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detbench.api.schemas import ModelDetections
from detbench.results.quality import ErrorFigures

SCORE_THRESHOLD = 0.1
IOU_THRESHOLD = 0.5
# A score may cross the threshold by float32 reassociation alone; within this distance that is no difference.
SCORE_MARGIN = 1e-4

# effdet clips to the image what it finds in the letterbox's padding: lines, with 0 / 0 for an IoU. This is far above
# the rounding of a float32 coordinate (6e-5 px at 1,000 px) and far below any box that is meant.
_THINNEST_PX = 0.02

# Random weights often find several classes at one anchor: boxes of IoU 1 with each other. Among equal IoUs the pair of
# equal label and nearest score is meant; the weights are far below any difference in IoU that matters.
_SAME_LABEL_BONUS = 1e-3
_SCORE_PENALTY = 1e-4

_LARGEST = "largest_"  # the fields of `ErrorSums` that are maxima

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Detections:
    """Detections of one model in one image as arrays: boxes (N, 4) x1 y1 x2 y2 in pixels, scores (N,), labels (N,)."""

    boxes: Floats
    scores: Floats
    labels: Ints

    @classmethod
    def of(cls, answer: ModelDetections) -> "Detections":
        """From a server's answer."""
        return cls(
            np.array(answer.boxes, dtype=np.float64).reshape(-1, 4),
            np.array(answer.scores, dtype=np.float64),
            np.array(answer.labels, dtype=np.int64),
        )

    def where(self, mask: npt.NDArray[np.bool_]) -> "Detections":
        """Those at which `mask` (N,) is true."""
        return Detections(self.boxes[mask], self.scores[mask], self.labels[mask])

    def __len__(self) -> int:
        return len(self.scores)


def iou(first: Floats, second: Floats) -> Floats:
    """Intersection over union of each box of `first` (N, 4) with each of `second` (M, 4): (N, M).

    A side thinner than `_THINNEST_PX` counts as that thick, so that boxes without an area have a partner as well.
    """
    first, second = _thickened(first), _thickened(second)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    overlaps: Floats = intersection / (areas[0][:, None] + areas[1][None, :] - intersection)
    return overlaps


def _thickened(boxes: Floats) -> Floats:
    centres, sides = (boxes[:, 2:] + boxes[:, :2]) / 2, boxes[:, 2:] - boxes[:, :2]
    halves = np.maximum(sides, _THINNEST_PX) / 2
    return np.hstack(
        [
            np.where(sides < _THINNEST_PX, centres - halves, boxes[:, :2]),
            np.where(sides < _THINNEST_PX, centres + halves, boxes[:, 2:]),
        ]
    )


def assign(reference: Detections, candidate: Detections) -> tuple[Ints, Ints, Floats]:
    """Assign detections one to one with maximum total IoU, pairs below `IOU_THRESHOLD` being no pairs.

    Returns:
        Indices into `reference`, indices into `candidate`, and the IoU of each pair.
    """
    from scipy.optimize import linear_sum_assignment  # takes a second, which no command waits for that compares nothing

    overlaps = iou(reference.boxes, candidate.boxes)
    same_label = reference.labels[:, None] == candidate.labels[None, :]
    score_distance = np.abs(reference.scores[:, None] - candidate.scores[None, :])
    worth = overlaps + _SAME_LABEL_BONUS * same_label - _SCORE_PENALTY * score_distance
    rows, columns = linear_sum_assignment(np.where(overlaps >= IOU_THRESHOLD, worth, 0.0), maximize=True)
    pairs = overlaps[rows, columns] >= IOU_THRESHOLD
    rows, columns = rows[pairs].astype(np.int64), columns[pairs].astype(np.int64)
    return rows, columns, overlaps[rows, columns]


@dataclass
class ErrorSums:
    """Sums and maxima over images, from which `ErrorFigures` are made; those of several models can be pooled.

    Squares are of pairs, or of detections that are alone: without a partner.
    """

    pairs_squared_boxes: float = 0.0
    pairs_squared_scores: float = 0.0
    alone_squared_boxes: float = 0.0
    alone_squared_scores: float = 0.0
    largest_box_difference_px: float = 0.0
    largest_score_difference: float = 0.0
    overlap: float = 0.0
    pairs: int = 0
    equal_labels: int = 0
    missed: int = 0
    spurious: int = 0
    reference_detections: int = 0
    candidate_detections: int = 0
    label_places: int = 0

    def add_image(self, reference: Detections, candidate: Detections) -> None:
        """Count one image of one model."""
        ours = reference.where(reference.scores >= SCORE_THRESHOLD)
        theirs = candidate.where(candidate.scores >= SCORE_THRESHOLD)
        rows, columns, overlaps = assign(ours, theirs)
        left_ours = _left_over(ours, rows, candidate)
        left_theirs = _left_over(theirs, columns, reference)
        box_differences = np.abs(ours.boxes[rows] - theirs.boxes[columns])
        score_differences = np.abs(ours.scores[rows] - theirs.scores[columns])
        self.pairs_squared_boxes += _squared(box_differences)
        self.pairs_squared_scores += float((score_differences**2).sum())
        for alone in (left_ours, left_theirs):
            self.alone_squared_boxes += _squared(alone.boxes)
            self.alone_squared_scores += float((alone.scores**2).sum())
        self.largest_box_difference_px = max(self.largest_box_difference_px, box_differences.max(initial=0.0))
        self.largest_score_difference = max(self.largest_score_difference, score_differences.max(initial=0.0))
        self.overlap += float(overlaps.sum())
        self.pairs += len(rows)
        self.equal_labels += int((ours.labels[rows] == theirs.labels[columns]).sum())
        self.missed += len(left_ours)
        self.spurious += len(left_theirs)
        # Detections that crossed the threshold by the margin count on neither side.
        self.reference_detections += len(rows) + len(left_ours)
        self.candidate_detections += len(rows) + len(left_theirs)
        self.label_places += len(rows) + max(len(left_ours), len(left_theirs))

    def repeated(self, count: int) -> "ErrorSums":
        """The same images `count` times."""
        largest = {name: value for name, value in vars(self).items() if name.startswith(_LARGEST)}
        return ErrorSums(**{name: count * value for name, value in vars(self).items()} | largest)

    def figures(self) -> ErrorFigures:
        """The figures; of nothing on either side they are those of equal outputs."""
        items = self.pairs + self.missed + self.spurious
        squared_boxes = self.pairs_squared_boxes + self.alone_squared_boxes
        squared_scores = self.pairs_squared_scores + self.alone_squared_scores
        return ErrorFigures(
            boxes_mse=squared_boxes / items if items else 0.0,
            scores_mse=squared_scores / items if items else 0.0,
            pairs_boxes_mse=self.pairs_squared_boxes / self.pairs if self.pairs else None,
            pairs_scores_mse=self.pairs_squared_scores / self.pairs if self.pairs else None,
            largest_box_difference_px=self.largest_box_difference_px if self.pairs else None,
            largest_score_difference=self.largest_score_difference if self.pairs else None,
            labels_accuracy=self.equal_labels / self.label_places if self.label_places else 1.0,
            mean_iou=self.overlap / self.pairs if self.pairs else float(items == 0),
            pairs=self.pairs,
            missed=self.missed,
            spurious=self.spurious,
            reference_detections=self.reference_detections,
            candidate_detections=self.candidate_detections,
        )


def total(sums: Iterable[ErrorSums]) -> ErrorSums:
    """Several models as one: sums are added, of maxima the largest is taken."""
    result = ErrorSums()
    for each in sums:
        for name, value in vars(each).items():
            pool = max if name.startswith(_LARGEST) else operator.add
            setattr(result, name, pool(getattr(result, name), value))
    return result


def _squared(boxes: Floats) -> float:
    """Sum over boxes (N, 4) of the mean of the four squares."""
    return float((boxes**2).mean(axis=1).sum())


def _left_over(detections: Detections, assigned: Ints, others: Detections) -> Detections:
    """Those that are not assigned, but for those whose partner is among `others` just below the threshold."""
    free = np.ones(len(detections), dtype=bool)
    free[assigned] = False
    just_below = others.where((others.scores < SCORE_THRESHOLD) & (others.scores >= SCORE_THRESHOLD - SCORE_MARGIN))
    has_partner = (iou(detections.boxes, just_below.boxes) >= IOU_THRESHOLD).any(axis=1)
    return detections.where(free & ~(has_partner & (detections.scores < SCORE_THRESHOLD + SCORE_MARGIN)))
