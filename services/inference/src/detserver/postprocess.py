"""From effdet's rows of detections to what is answered."""

import numpy as np
import numpy.typing as npt

from detserver.implementations.base import DetectionOutput


def detection_output(
    model_name: str, rows: npt.NDArray[np.float32], inference_time_ms: float | None
) -> DetectionOutput:
    """Detections of one image by one model.

    Args:
        rows: float32 of shape (N, 6): x1, y1, x2, y2, score, class from 1; rows of zeros are effdet's padding up to
            100 rows (effdet.anchors.generate_detections) and are dropped.
        inference_time_ms: see `DetectionOutput`.
    """
    labels = rows[:, 5].astype(np.int64)
    found = rows[labels > 0]
    return DetectionOutput(model_name, found[:, :4], found[:, 4], labels[labels > 0], inference_time_ms)
