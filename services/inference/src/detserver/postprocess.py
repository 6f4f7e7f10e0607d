"""From the networks' raw outputs to detections, for all models and images of a batch at once.

The results are effdet's (`effdet.bench._post_process`, `effdet.anchors.generate_detections`): top 5000 (anchor, class)
pairs by logit, boxes decoded and clipped, per-class NMS at IoU 0.5, the 100 of highest score (both numbers are those of
each model's configuration). The work is less:

- effdet sorts out the 5000 among all pairs (ten million for D2), after copying them twice. Any pair among the k
  highest belongs to one of the k anchors with the highest maximum over classes; so the maximum goes first, and what is
  then sorted is k x classes.
- Greedy NMS decides each candidate by those above it alone. Where the first 1000 candidates leave 100 detections, the
  other 4000 cannot change them and are not looked at.
- NMS runs over (model, image, class) together; one copy to the host per batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from effdet.anchors import Anchors, decode_box_outputs
from torchvision.ops import nms

from detserver.models.model_sets import ModelSpec

IOU_THRESHOLD = 0.5  # effdet's, in `generate_detections`

_FIRST_CANDIDATES = 1000
# Greedy suppression chains of a photograph are 3 to 8 boxes long; a longer one is seen, and done on the host.
_ROUNDS = 12

# Logit, class, box code and anchor of a candidate that is none: an empty box of score 0.
_NO_PAIR = (-math.inf, -1, 0, 0)

Levels = Sequence[torch.Tensor]
RawOutput = tuple[Levels, Levels]
"""Class logits and box codes of one network as effdet's networks answer: per level, (B, A x classes | A x 4, H, W)."""


@dataclass(frozen=True)
class DetectionOutput:
    """What one model found in one image; at most 100 detections.

    Attributes:
        model_name: as in the model set.
        boxes: float32 of shape (N, 4): x1, y1, x2, y2 in pixels of the upright image.
        scores: float32 of shape (N,), in [0, 1], descending.
        labels: int64 of shape (N,), from 1.
        inference_time_ms: forward and post-processing of this model alone; None where models run as one.
    """

    model_name: str
    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    inference_time_ms: float | None = None


@dataclass(frozen=True)
class Candidates:
    """The highest (anchor, class) pairs of M models and B images, k each, in descending order of score.

    Attributes:
        boxes: float32 (M, B, k, 4): x1, y1, x2, y2 in pixels of the network input, clipped to the picture.
        scores: float32 (M, B, k).
        classes: int64 (M, B, k), from 0. -1 is no pair: a model that has less than k ends in such ones, of score 0.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor


class PostProcessor:
    """Post-processing of the models of a set.

    Args:
        models: in the order of the set.
        device: where their outputs are.
        note_slow_path: called once for each batch in which the first 1000 candidates are not enough.
    """

    def __init__(
        self, models: Sequence[ModelSpec], device: torch.device, note_slow_path: Callable[[], None] = lambda: None
    ) -> None:
        self._note_slow_path = note_slow_path
        self._classes = [model.num_classes for model in models]
        configs = [model.config() for model in models]
        self._candidates = [int(config.max_detection_points) for config in configs]
        self._limits = [int(config.max_det_per_image) for config in configs]
        self._detections = max(self._limits)
        """N: rows per model and image; those beyond a model's own limit are zeros."""
        positions = torch.arange(self._detections)
        self._within = torch.stack([positions < limit for limit in self._limits])[:, None].to(device)
        self._anchors = [Anchors.from_config(config).boxes.to(device) for config in configs]

    def __call__(self, raw: Sequence[RawOutput], scales: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """Detections of M models in B images.

        Args:
            raw: outputs of the M networks.
            scales: float32 (M, B): from the network's pixels to the picture's; effdet's `img_scale`.
            sizes: float32 (B, 2): width and height of the pictures, pixels; effdet's `img_size`.

        Returns:
            float32 (M, B, N, 6) on the host, N the largest `max_det_per_image`: x1, y1, x2, y2 in pixels of the
            picture, score, class from 1; descending by score, rows of zeros where there are less than N.
        """
        if scales.device.type == "cuda":
            host = self.fixed_shape(raw, scales, sizes).cpu()
            return host[..., :6] if is_complete(host) else self.all_candidates(raw, scales, sizes)
        rows = self._suppress(self.candidates(raw, scales, sizes, _FIRST_CANDIDATES), scales)
        complete = (rows[..., 5] > 0) | ~self._within.cpu()
        return rows if complete.all() else self.all_candidates(raw, scales, sizes)

    def all_candidates(self, raw: Sequence[RawOutput], scales: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """As `__call__`, from all candidates at once: where the first 1000 leave less than N detections."""
        self._note_slow_path()
        return self._suppress(self.candidates(raw, scales, sizes), scales)

    def fixed_shape(self, raw: Sequence[RawOutput], scales: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """As `__call__` from the first 1000 candidates, without a step that waits for the device: for CUDA graphs.

        Returns:
            float32 (M, B, N, 7) on the device; what is more is for `is_complete`, which says whether the first 1000
            were enough.
        """
        candidates = self.candidates(raw, scales, sizes)
        k = min(_FIRST_CANDIDATES, candidates.scores.shape[2])
        keep, settled = _suppressed_in_rounds(_offset_by_class(candidates)[:, :, :k])
        # The first N that are kept, in their order: the kept ones get k, k-1, ... and the others 0.
        order = torch.arange(k, 0, -1, device=keep.device)
        ranks, index = (keep * order).topk(min(self._detections, k), dim=2)
        within = self._within[..., : index.shape[2]]
        found = ((ranks > 0) & within)[..., None]
        rows = torch.where(found, _rows(candidates, index, scales), 0)
        complete = (((ranks > 0) | ~within) & settled[:, :, None])[..., None].to(rows.dtype)
        return torch.cat([rows, complete], dim=3)

    def candidates(
        self, raw: Sequence[RawOutput], scales: torch.Tensor, sizes: torch.Tensor, at_most: int | None = None
    ) -> Candidates:
        """The highest (anchor, class) pairs per model and image: `max_detection_points` of each model, or `at_most`."""
        counts = [count if at_most is None else min(count, at_most) for count in self._candidates]
        per_model = zip(raw, self._classes, self._anchors, counts, strict=True)
        chosen = [_highest(*levels, classes, anchors, count) for levels, classes, anchors, count in per_model]
        longest = max(counts)
        padded = [[_padded(part, longest, fill) for part, fill in zip(each, _NO_PAIR, strict=True)] for each in chosen]
        logits, classes, codes, anchors = (torch.stack(parts) for parts in zip(*padded, strict=True))
        shape = codes.shape
        boxes = decode_box_outputs(codes.float().flatten(0, 2), anchors.flatten(0, 2), output_xyxy=True).view(shape)
        # As effdet.anchors.clip_boxes_xyxy, which takes one picture.
        limits = (sizes / scales[:, :, None]).repeat(1, 1, 2)[:, :, None]
        return Candidates(boxes.clamp(min=0).minimum(limits), logits.float().sigmoid(), classes)

    def _suppress(self, candidates: Candidates, scales: torch.Tensor) -> torch.Tensor:
        """NMS of each model and image by torchvision; returns rows (M, B, N, 6) on the host."""
        boxes = _offset_by_class(candidates)
        models, batch = scales.shape
        parts = (candidates.boxes, candidates.scores, candidates.classes)
        rows = torch.zeros(models, batch, self._detections, 6)
        for model, limit in enumerate(self._limits):
            for image in range(batch):
                kept = nms(boxes[model, image], candidates.scores[model, image].to(boxes.dtype), IOU_THRESHOLD)
                index = kept[:limit].expand(1, 1, -1)
                here = Candidates(*(part[model, image][None, None] for part in parts))
                rows[model, image, : index.shape[2]] = _rows(here, index, scales[model, image].view(1, 1))[0, 0]
        return rows


def is_complete(rows: torch.Tensor) -> bool:
    """Whether what `PostProcessor.fixed_shape` answered, copied to the host, needs no second look."""
    return bool((rows[..., 6] > 0).all())


def detections(models: Sequence[ModelSpec], rows: torch.Tensor) -> list[list[DetectionOutput]]:
    """What each model found in each image.

    Args:
        models: in the order of the rows.
        rows: see `PostProcessor.__call__`; copied, so that they may be overwritten.
    """
    by_image = rows.transpose(0, 1).numpy()
    return [
        [detection_output(spec.name, found) for spec, found in zip(models, per_model, strict=True)]
        for per_model in by_image
    ]


def detection_output(
    model_name: str, rows: npt.NDArray[np.float32], inference_time_ms: float | None = None
) -> DetectionOutput:
    """Detections of one image by one model.

    Args:
        rows: float32 of shape (N, 6): x1, y1, x2, y2, score, class from 1; rows of zeros are effdet's padding up to
            `max_det_per_image` rows (effdet.anchors.generate_detections) and are dropped.
        inference_time_ms: see `DetectionOutput`.
    """
    labels = rows[:, 5].astype(np.int64)
    found = rows[labels > 0]
    return DetectionOutput(model_name, found[:, :4], found[:, 4], labels[labels > 0], inference_time_ms)


def _highest(
    class_levels: Levels, box_levels: Levels, num_classes: int, anchors: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (B, k), classes (B, k), box codes (B, k, 4) and anchor boxes (B, k, 4) of the highest pairs of one model.

    An anchor's number counts as effdet's does: level, row, column, anchor of the cell.
    """
    batch = class_levels[0].shape[0]
    cells = [level.view(batch, -1, num_classes, *level.shape[2:]) for level in class_levels]  # B, A, classes, H, W
    best = torch.cat([level.amax(2).permute(0, 2, 3, 1).reshape(batch, -1) for level in cells], dim=1)
    codes = torch.cat([level.permute(0, 2, 3, 1).reshape(batch, -1, 4) for level in box_levels], dim=1)
    anchor = best.topk(min(count, best.shape[1]), dim=1, sorted=False).indices
    logits = _logits_of(cells, anchor)
    top, flat = logits.flatten(1).topk(min(count, logits[0].numel()), dim=1)
    anchor = anchor.gather(1, flat // num_classes)
    return top, flat % num_classes, codes.gather(1, anchor[:, :, None].expand(-1, -1, 4)), anchors[anchor]


def _padded(part: torch.Tensor, count: int, fill: float) -> torch.Tensor:
    """`part` (B, k, ...) with `fill` appended until k is `count`."""
    missing = count - part.shape[1]
    if missing == 0:
        return part
    return torch.cat([part, part.new_full((len(part), missing, *part.shape[2:]), fill)], dim=1)


def _logits_of(cells: Levels, anchor: torch.Tensor) -> torch.Tensor:
    """Logits of all classes, (B, k, classes), of the numbered anchors (B, k); no shape depends on where they are."""
    per_cell = cells[0].shape[1]
    image = torch.arange(anchor.shape[0], device=anchor.device)[:, None]
    start, result = 0, cells[0].new_zeros(())
    for level in cells:
        height, width = level.shape[3:]
        count = height * width * per_cell
        local = (anchor - start).clamp(0, count - 1)
        cell = local // per_cell
        here = level[image, local % per_cell, :, cell // width, cell % width]
        result = torch.where((anchor >= start)[:, :, None], here, result)
        start += count
    return result


def _offset_by_class(candidates: Candidates) -> torch.Tensor:
    """Boxes moved apart by class, so that one NMS over all is the NMS of each class.

    torchvision's `batched_nms`, and with it effdet, does so in float32 on a GPU, which rounds coordinates to 1/128 of a
    pixel or so; on a CPU it does not. Boxes of IoU near the threshold fall as they do there: the same sum on a GPU, and
    on a CPU in float64, where it is exact.
    """
    if candidates.boxes.device.type == "cuda":
        widest = candidates.boxes.amax(dim=(2, 3), keepdim=True) + 1
        return candidates.boxes + candidates.classes[..., None].to(widest.dtype) * widest
    return candidates.boxes.double() + candidates.classes[..., None] * 2.0**16


def _suppressed_in_rounds(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy NMS without a data-dependent step.

    Every round decides each box by those kept in the round before; box n is final after at most n rounds, and in
    practice after as many as the longest chain of boxes that suppress each other.

    Args:
        boxes: (..., k, 4), in descending order of score.

    Returns:
        Which are kept, bool (..., k), and whether that is final, bool (...).
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    left_top = low[..., :, None, :].maximum(low[..., None, :, :])
    right_bottom = high[..., :, None, :].minimum(high[..., None, :, :])
    common = (right_bottom - left_top).clamp(min=0).prod(dim=-1)
    area = (high - low).prod(dim=-1)
    overlap = common / (area[..., :, None] + area[..., None, :] - common) > IOU_THRESHOLD
    # As numbers, so that "is any kept box above over this one" is a matrix product.
    above = overlap.triu(diagonal=1).to(torch.half if boxes.device.type == "cuda" else torch.float)
    keep = torch.ones_like(area, dtype=torch.bool)
    previous = keep
    for _ in range(_ROUNDS):
        previous, keep = keep, (keep[..., None, :].to(above.dtype) @ above)[..., 0, :] == 0
    return keep, (keep == previous).all(dim=-1)


def _rows(candidates: Candidates, index: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The candidates at `index` (M, B, n) as rows (M, B, n, 6): box in pixels of the picture, score, class from 1."""
    boxes = candidates.boxes.gather(2, index[..., None].expand(-1, -1, -1, 4)) * scales[:, :, None, None]
    scores, classes = candidates.scores.gather(2, index), candidates.classes.gather(2, index) + 1
    return torch.cat([boxes, scores[..., None], classes[..., None].to(boxes.dtype)], dim=3)
