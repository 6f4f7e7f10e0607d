"""COCO mAP of stored outputs against a dataset's annotations."""

import contextlib
import io
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detbench.datasets import image_name, read_coco
from detbench.errors import DatasetError
from detbench.quality.outputs import ImageOutput

_DRAWS, _LEAST_DRAWS, _DRAWS_S = 200, 20, 10.0


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

    def evaluated(self, outputs: Sequence[ImageOutput], model_name: str) -> "Evaluation":
        """One model's detections, evaluated; images without a box count as well.

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
        # pycocotools takes no empty list. A box of no category is found nowhere.
        rows = rows or [(next(iter(known)), 0.0, 0.0, 1.0, 1.0, 0.0, 0)]
        return Evaluation(self._coco, np.array(rows, dtype=np.float64), list(known))

    def _known(self, outputs: Sequence[ImageOutput]) -> dict[int, ImageOutput]:
        """The outputs of images that are annotated, by the image's number in the file."""
        numbers = self._file.images
        return {numbers[name]: output for output in outputs if (name := image_name(output.image)) in numbers}


class Evaluation:
    """The detections of one model, matched to the annotations of each image.

    Args:
        annotations: pycocotools' index of them.
        detections: (N, 7): image, x, y, width, height, score, category.
        images: numbers of the images that count.
    """

    def __init__(self, annotations: COCO, detections: np.ndarray, images: Sequence[int]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._evaluation = COCOeval(annotations, annotations.loadRes(detections), "bbox")
            parameters = self._evaluation.params
            parameters.imgIds = list(images)
            parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], parameters.areaRngLbl[:1]  # all sizes
            parameters.maxDets = parameters.maxDets[-1:]
            self._evaluation.evaluate()
        self._images = len(self._evaluation._paramsEval.imgIds)
        self._matched = self._evaluation.evalImgs
        everything = self._precisions(range(self._images))
        self.ap50, self.ap75 = _mean(everything[0]), _mean(everything[5])
        self.map = _mean(everything)

    @property
    def images(self) -> int:
        """How many images count."""
        return self._images

    def map_of(self, images: Iterable[int]) -> float:
        """mAP over these images, by their places from 0; one may count several times."""
        return _mean(self._precisions(images))

    def _precisions(self, images: Iterable[int]) -> np.ndarray:
        """Precisions of (IoU, recall, category); -1 where a category has nothing to find."""
        chosen = list(images)
        # By category, then by image: there is one area. As many images as there are, so that pycocotools takes them.
        self._evaluation.evalImgs = [
            self._matched[first + place] for first in range(0, len(self._matched), self._images) for place in chosen
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            self._evaluation.accumulate()
        precisions: np.ndarray = self._evaluation.eval["precision"][:, :, :, 0, 0]
        return precisions


def difference_interval(ours: Evaluation, theirs: Evaluation) -> tuple[float, float]:
    """Bounds of theirs less ours with 95 %: percentiles of the differences over images drawn with replacement.

    The images of each draw are the same for both (a paired bootstrap), from a fixed seed. There are 200 draws, fewer
    where they take longer than 10 s, but 20 at least.
    """
    generator = np.random.default_rng(0)
    differences: list[float] = []
    began_s = time.monotonic()
    while len(differences) < _LEAST_DRAWS or (len(differences) < _DRAWS and time.monotonic() - began_s < _DRAWS_S):
        images = generator.integers(0, ours.images, ours.images).tolist()
        differences.append(theirs.map_of(images) - ours.map_of(images))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def _mean(precisions: np.ndarray) -> float:
    """Over what there is to find, as pycocotools' summary; 0 where a draw has nothing."""
    found = precisions[precisions > -1]
    return float(found.mean()) if found.size else 0.0
