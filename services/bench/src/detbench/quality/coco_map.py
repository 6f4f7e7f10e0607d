"""COCO mAP of stored outputs against a dataset's annotations."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detbench.errors import DatasetError
from detbench.quality.outputs import ImageOutput


class Annotations:
    """A COCO annotation file.

    Args:
        path: JSON with images, annotations and categories.

    Raises:
        DatasetError: not such a file.
    """

    def __init__(self, path: Path) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
                self._coco = COCO(str(path))
            self._ids = {Path(image["file_name"]).name: image["id"] for image in self._coco.dataset["images"]}
            self.classes: int = max(self._coco.getCatIds())
        except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError, AssertionError) as error:
            raise DatasetError(f"{path} is no COCO annotation file ({type(error).__name__}: {error})") from error

    def mean_average_precision(self, outputs: Sequence[ImageOutput], model_name: str) -> float | None:
        """mAP over IoU 0.50:0.95 of one model's detections, in [0, 1]; None where no image is annotated."""
        image_ids = [self._ids[output.image] for output in outputs if output.image in self._ids]
        if not self._coco.getAnnIds(imgIds=image_ids):
            return None
        rows = [
            (self._ids[output.image], x1, y1, x2 - x1, y2 - y1, score, label)
            for output in outputs
            if output.image in self._ids
            for model in output.detections
            if model.model_name == model_name
            for (x1, y1, x2, y2), score, label in zip(model.boxes, model.scores, model.labels, strict=True)
        ]
        if not rows:
            return 0.0
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._coco, self._coco.loadRes(np.array(rows, dtype=np.float64)), "bbox")
            evaluation.params.imgIds = image_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[0])
