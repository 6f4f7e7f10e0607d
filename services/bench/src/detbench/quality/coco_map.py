"""COCO mAP of stored outputs against a dataset's annotations."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detbench.datasets import image_name, read_coco
from detbench.errors import DatasetError
from detbench.quality.outputs import ImageOutput


class Annotations:
    """The boxes of a COCO annotation file, to evaluate detections with.

    Attributes:
        classes: the highest category id.

    Args:
        path: see `read_coco`.

    Raises:
        DatasetError: the file cannot be used; the message says why.
    """

    def __init__(self, path: Path) -> None:
        self._file = read_coco(path)
        self.classes = max(self._file.categories)
        self._coco = COCO()
        # pycocotools takes an annotation of id 0 for none (cocoapi issue 332), and needs fields that tools leave out.
        # mAP is over objects of all sizes, so that any area will do.
        self._coco.dataset = {
            "info": {},
            "images": [{"id": number} for number in self._file.images.values()],
            "categories": [{"id": category} for category in self._file.categories],
            "annotations": [
                {
                    "id": number,
                    "image_id": box.image,
                    "category_id": box.category,
                    "bbox": list(box.bbox),
                    "area": 1.0,
                    "iscrowd": int(box.crowd),
                }
                for number, box in enumerate(self._file.boxes, 1)
            ],
        }
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            self._coco.createIndex()

    def notes(self, outputs: Sequence[ImageOutput]) -> list[str]:
        """What does not count in the mAP of `outputs`, a line each."""
        known, missing = self._known(outputs), []
        if 0 < len(known) < len(outputs):
            missing = [f"{self._file.path.name}: only {len(known)} of the {len(outputs)} images are in it, and count"]
        return [*self._file.notes, *missing]

    def mean_average_precision(self, outputs: Sequence[ImageOutput], model_name: str) -> float:
        """mAP over IoU 0.50:0.95 of one model's detections, in [0, 1]; images without a box count as well.

        Raises:
            DatasetError: there is nothing to find in these images.
        """
        known = self._known(outputs)
        left_out = "".join(f" ({note})" for note in self._file.notes)
        if not known:
            example = next(iter(self._file.images), "no image")
            raise DatasetError(f"{self._file.path} is of other images: {example!r}, not {outputs[0].image!r}{left_out}")
        if not any(box.image in known and not box.crowd for box in self._file.boxes):
            raise DatasetError(f"{self._file.path} has no box to find in these images{left_out}")
        rows = [
            (number, x1, y1, x2 - x1, y2 - y1, score, label)
            for number, output in known.items()
            for model in output.detections
            if model.model_name == model_name
            for (x1, y1, x2, y2), score, label in zip(model.boxes, model.scores, model.labels, strict=True)
        ]
        if not rows:
            return 0.0
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._coco, self._coco.loadRes(np.array(rows, dtype=np.float64)), "bbox")
            evaluation.params.imgIds = list(known)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[0])

    def _known(self, outputs: Sequence[ImageOutput]) -> dict[int, ImageOutput]:
        """The outputs of images that are annotated, by the image's number in the file."""
        numbers = self._file.images
        return {numbers[name]: output for output in outputs if (name := image_name(output.image)) in numbers}
