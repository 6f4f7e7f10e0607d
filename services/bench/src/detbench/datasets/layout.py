"""Where a folder that somebody exported or downloaded has its images, and which files may have their boxes.

photos/*.jpg                                    any folder
images/*.jpg  instances.json                    ours
valid/*.jpg  valid/_annotations.coco.json       Roboflow, with train/ and test/ beside
val2017/*.jpg  annotations/instances_*.json     COCO; images/val2017/ too
data/*.jpg  labels.json                         FiftyOne
images/default/*.jpg  annotations/*.json        CVAT, Datumaro
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from detbench.errors import DatasetError

FORMATS = "JPEG, PNG, WebP or BMP"
# What is named like this is meant as a picture, of a format that is accepted or not.
PICTURES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"),
    *(".dib", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2"),
}
# Of several splits, the one that detectors are compared on.
_SPLITS = ("val", "test", "train")
_SPLIT = re.compile(r"(val(id(ation)?)?|test(ing)?|train(ing)?)[-_]?\d*", re.IGNORECASE)
_ANNOTATION_FILE = re.compile(r"instances|annotation|coco|label|^result$|^val|^test|^train", re.IGNORECASE)
_DEPTH = 2
_SHOWN = 3


def pictures(folder: Path) -> list[Path]:
    """What is named like a picture in a folder, by name. Hidden files are none: macOS writes `._a.jpg` beside a.jpg."""
    named = [entry for entry in _entries(folder) if Path(entry.name).suffix.lower() in PICTURES]
    return [folder / entry.name for entry in named if not _is_folder(entry)]


def folder_of_images(folder: Path) -> Path:
    """`images` in a folder, the folder itself, its only subfolder with images, or its validation, test or train split.

    Raises:
        DatasetError: there is none, or there are several to choose from.
    """
    for place in (folder / "images", folder):
        if place.is_dir() and pictures(place):
            return place
    places = [place for place in _subfolders(folder, _DEPTH) if pictures(place)]
    for split in (*_SPLITS, ""):
        found = [place for place in places if not split or _split_of(place.relative_to(folder)) == split]
        if len(found) > 1:  # masks may lie beside the images
            found = [place for place in found if any(map(_is_of_images, place.relative_to(folder).parts))] or found
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(place) for place in found[:_SHOWN])
            more = f" and {len(found) - _SHOWN} more" if found[_SHOWN:] else ""
            raise DatasetError(f"{folder} has images in several folders ({names}{more}); name one of them")
    raise DatasetError(
        f"{folder} holds no image ({FORMATS}): looked for files in it, in images/, and in splits like val2017/, "
        "valid/, images/val/ and train/images/; name a folder that has some"
    )


def annotation_files(folder: Path, images: Path) -> tuple[Path, ...]:
    """COCO annotation files that may be of `images`, which is `folder` or lies in it; the likeliest come first."""
    places = [images, *(place for place in images.parents if place == folder or folder in place.parents)]
    while _is_of_images(places[-1].name) or _SPLIT.fullmatch(places[-1].name):  # the whole dataset is one folder above
        places.append(places[-1].parent)
    found = [path for place in places for path in place.glob("*.json") if _ANNOTATION_FILE.search(path.stem)]
    found += [path for place in places for path in (place / "annotations").glob("*.json")]
    split = _split_of(images) or images.name

    def likelihood(path: Path) -> tuple[bool, bool, bool, bool, str]:
        stem = path.stem.lower()
        return path.parent == images, images.name.lower() in stem, split in stem, "instances" in stem, path.name

    visible = (path for path in dict.fromkeys(found) if not path.name.startswith(".") and path.is_file())
    return tuple(sorted(visible, key=likelihood, reverse=True))


def _split_of(path: Path) -> str | None:
    names = [part.lower() for part in path.parts[-_DEPTH:] if _SPLIT.fullmatch(part)]
    return next((split for split in _SPLITS for name in names if name.startswith(split)), None)


def _is_of_images(name: str) -> bool:
    return "image" in name.lower() or "img" in name.lower()


def _subfolders(folder: Path, depth: int) -> Iterator[Path]:
    for entry in _entries(folder):
        if _is_folder(entry):
            yield folder / entry.name
            if depth > 1:
                yield from _subfolders(folder / entry.name, depth - 1)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
