"""Reading a COCO annotation file as label tools really write them: what can be used of it, and why the rest cannot.

The format: https://cocodataset.org/#format-data. Ids may be text, 64 bit or begin at 0, `area` and `iscrowd` may be
missing, names may have folders of any system before them; nothing of that reaches the evaluation.
"""

import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from detbench.errors import DatasetError

Id = int | str
Bbox = tuple[float, float, float, float]

# What the JSON of other tools has at its top, to name the tool in the message.
_OTHER_TOOLS = {
    "shapes": "labelme",
    "_via_img_metadata": "VIA",
    "_via_settings": "VIA",
    "samples": "FiftyOne",
    "items": "Datumaro",
    "instances": "SuperAnnotate",
    "assets": "VoTT",
}
_REMEDY = "export the labels as COCO"
_SHOWN = 3
_LONGEST = 40
_LARGEST_PX = 1e6  # no image format goes beyond
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,30}")


@dataclass(frozen=True)
class Box:
    """One labelled object. `bbox` is x, y, width, height in pixels; a crowd's is of several objects, and no miss."""

    image: int
    category: int
    bbox: Bbox
    crowd: bool


@dataclass(frozen=True)
class CocoFile:
    """What can be used of an annotation file.

    Attributes:
        images: number, from 1, of each image by its file name without folders (Unicode NFC).
        categories: ids, ascending, from 1.
        boxes: of these images and categories.
        notes: what is left out and why, a line each.
    """

    path: Path
    images: dict[str, int]
    categories: tuple[int, ...]
    boxes: tuple[Box, ...]
    notes: tuple[str, ...]


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file.

    Raises:
        DatasetError: it cannot be read, is no COCO annotation file, or its category ids cannot be a detector's labels,
            which begin at 1.
    """
    content = _content(path)
    images, by_id, ambiguous = _images(_entries(path, content, "images"))
    annotations = _entries(path, content, "annotations")
    listed = {category for entry in _entries(path, content, "categories") if (category := _id(entry.get("id")))}
    if any(_id(entry.get("category_id")) == 0 for entry in annotations):
        raise DatasetError(f"{path} counts categories from 0, and a detector's labels begin at 1; add 1 to each id")
    if not listed:  # category 0 without a box is Roboflow's: the name of the whole dataset
        raise DatasetError(f"{path} lists no categories; {_REMEDY}, with its classes")
    categories = sorted(category for category in listed if isinstance(category, int) and category > 0)
    if len(categories) < len(listed):
        raise DatasetError(f"{path} has category ids that are no numbers from 1; {_REMEDY}, with ids like labels")
    boxes: list[Box] = []
    no_bbox = 0
    unlisted: list[str] = []
    for entry in annotations:
        image = by_id.get(_id(entry.get("image_id")))
        if image is None:
            continue
        category, bbox = _id(entry.get("category_id")), _bbox(entry.get("bbox"))
        if category not in listed:
            unlisted.append(repr(entry.get("category_id"))[:_LONGEST])
        elif bbox is None:
            no_bbox += 1
        else:
            assert isinstance(category, int)
            boxes.append(Box(image, category, bbox, _flag(entry.get("iscrowd"))))
    if boxes and all(max(map(abs, box.bbox)) <= 1 for box in boxes):
        raise DatasetError(f"{path} has boxes between 0 and 1, which are shares of the image; {_REMEDY}, in pixels")
    notes = []
    if no_bbox:
        notes.append(f"{_counted(no_bbox, 'annotation')} without a bbox of x, y, width and height")
    if unlisted:
        names = ", ".join(list(dict.fromkeys(unlisted))[:_SHOWN])
        notes.append(f"{_counted(len(unlisted), 'annotation')} of categories that it does not list ({names})")
    if ambiguous:
        notes.append(f"{_counted(ambiguous, 'name')} of images that share it, or their id")
    left_out = tuple(f"{path.name}: {note}: left out" for note in notes)
    return CocoFile(path, images, tuple(categories), tuple(boxes), left_out)


def image_name(file_name: str) -> str:
    """The name of an image without the folders of any system before it, in the form in which names are compared."""
    return unicodedata.normalize("NFC", PurePosixPath(file_name.replace("\\", "/")).name)


def best_match(candidates: Sequence[Path], names: Iterable[str]) -> Path | None:
    """The annotation file that lists most of the images called `names`; the earlier one of equals, None of nothing.

    A file that lists all of them ends the search: those of a large training set are not read in vain.
    """
    if len(candidates) < 2:
        return next(iter(candidates), None)
    wanted = {image_name(name) for name in names}
    best, most = candidates[0], 0
    for path in candidates:
        try:
            count = len(wanted & read_coco(path).images.keys())
        except DatasetError:
            continue
        if count > most:
            best, most = path, count
        if count == len(wanted):
            break
    return best


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())  # bytes: json finds out UTF-8, 16 and 32, and skips a byte order mark
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is no JSON ({error}); {_REMEDY}") from error
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        return content
    keys = content if isinstance(content, dict) else ()
    tool = next((f", but like that of {name}" for key, name in _OTHER_TOOLS.items() if key in keys), "")
    kind = "a list" if isinstance(content, list) else "without a list of images"
    raise DatasetError(f"{path} is no COCO annotation file: it is {kind}{tool}; {_REMEDY}")


def _entries(path: Path, content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = content.get(name)
    if not isinstance(found, list):
        raise DatasetError(f"{path} has no list of {name}; {_REMEDY}, with its boxes")
    return [entry for entry in found if isinstance(entry, dict)]


def _images(entries: Iterable[dict[str, Any]]) -> tuple[dict[str, int], dict[Id | None, int], int]:
    """Numbers of the images by name and by id, and how many names are left out because they are ambiguous.

    Several entries of one file are one image. Of different files with the same name in different folders, or with the
    same id, nobody can say whose the boxes are.
    """
    files_of_name: defaultdict[str, set[str]] = defaultdict(set)
    names_of_id: defaultdict[Id, set[str]] = defaultdict(set)
    for entry in entries:
        file_name, identity = entry.get("file_name"), _id(entry.get("id"))
        if isinstance(file_name, str) and identity is not None and (name := image_name(file_name)):
            files_of_name[name].add(file_name.replace("\\", "/"))
            names_of_id[identity].add(name)
    shared = {name for names in names_of_id.values() if len(names) > 1 for name in names}
    shared |= {name for name, files in files_of_name.items() if len(files) > 1}
    numbers = {name: number for number, name in enumerate((n for n in files_of_name if n not in shared), 1)}
    by_id: dict[Id | None, int] = {i: numbers[name] for i, names in names_of_id.items() for name in names - shared}
    return numbers, by_id, len(shared)


def _id(value: object) -> Id | None:
    """An id in the form in which ids are compared: 7, 7.0 and "7" are the same; None is no id."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if _WHOLE_NUMBER.fullmatch(text) else text or None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None


def _bbox(value: object) -> Bbox | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    try:
        x, y, width, height = (float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not all(abs(number) < _LARGEST_PX for number in (x, y, width, height)) or width <= 0 or height <= 0:
        return None
    return x, y, width, height


def _flag(value: object) -> bool:
    return str(value).strip().lower() in ("1", "1.0", "true")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"
