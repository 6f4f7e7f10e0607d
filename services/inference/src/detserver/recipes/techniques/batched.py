"""`postprocess=batched`: one post-processing of all models and images of a batch, see `detserver.postprocess`."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from detserver.postprocess import DetectionOutput, PostProcessor, detections
from detserver.preprocess import PreparedImage
from detserver.recipes.technique import Plan, Technique


class BatchedPostprocess(Technique):
    """Networks first, then what they answered, together."""

    field = "postprocess"
    titles: ClassVar = {"batched": "batched post-processing"}

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        postprocessor = PostProcessor(plan.model_set.models, plan.device, plan.note_slow_nms)

        def detect(images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
            rows = rows_of(plan, postprocessor, images)
            return detections(plan.model_set.models, rows)

        plan.detect = detect


def rows_of(plan: Plan, postprocessor: PostProcessor, images: Sequence[PreparedImage]) -> torch.Tensor:
    """Rows of detections, float32 (M, B, N, 6) on the host, of a batch."""
    with plan.stopwatch.stage("forward"):
        raw = plan.forward(plan.inputs(images))
    with plan.stopwatch.stage("postprocess"):
        return postprocessor(raw, *(part.to(plan.device) for part in plan.geometry(images)))
