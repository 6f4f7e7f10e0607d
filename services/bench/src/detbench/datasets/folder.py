"""A folder of images as a dataset."""

import hashlib
import logging
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from detbench.datasets.coco_file import best_match
from detbench.datasets.layout import FORMATS, annotation_files, folder_of_images, pictures
from detbench.errors import DatasetError

log = logging.getLogger(__name__)

_SHOWN = 3
# Sizes of the header that follows a BMP's first 14 bytes, of each of its versions.
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


@dataclass(frozen=True)
class Photo:
    """One image file; `sha256` is that of the file, `content_type` its media type, by its content."""

    name: str
    path: Path
    sha256: str
    content_type: str

    def read(self) -> bytes:
        """The file's content.

        Raises:
            DatasetError: it is gone, or may not be read.
        """
        return _content(self.path)


@dataclass(frozen=True)
class Dataset:
    """Photos in the order of their names; `annotation_files` are COCO files that may be theirs."""

    name: str
    photos: tuple[Photo, ...]
    annotation_files: tuple[Path, ...]

    @cached_property
    def annotations(self) -> Path | None:
        """The annotation file that lists most of the photos; None where there is no file at all."""
        return best_match(self.annotation_files, [photo.name for photo in self.photos])


def open_folder(folder: Path, name: str, max_images: int | None = None) -> Dataset:
    """The images of a folder, see `detbench.datasets.layout`.

    What is named like a picture and is none of an accepted format, or cannot be read, is left out with a warning.

    Args:
        max_images: use the first so many, by name; None is all.

    Raises:
        DatasetError: no image there, several folders of images to choose from, or `max_images` is below 1.
    """
    if max_images is not None and max_images < 1:
        raise DatasetError(f"the number of images is {max_images}; it must be 1 or more")
    images = folder_of_images(folder)
    photos: list[Photo] = []
    left_out: list[str] = []
    for path in pictures(images):
        if len(photos) == max_images:
            break
        try:
            photos.append(_photo(path))
        except DatasetError as error:
            left_out.append(str(error))
    reasons = "; ".join(left_out[:_SHOWN]) + (f"; and {len(left_out) - _SHOWN} more" if left_out[_SHOWN:] else "")
    if not photos:
        raise DatasetError(f"{images} holds no image ({FORMATS}) that can be used: {reasons}")
    if left_out:
        log.warning("left out of the dataset %s: %s", name, reasons)
    split = images.relative_to(folder).as_posix()
    whole = name if split in (".", "images") else f"{name}/{split}"
    return Dataset(whole, tuple(photos), annotation_files(folder, images))


def content_type(content: bytes) -> str | None:
    """The media type of an image by how its file begins; None where that is no accepted format."""
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "image/webp"
    if content.startswith(b"BM") and int.from_bytes(content[14:18], "little") in _BMP_HEADERS:
        return "image/bmp"
    return None


def _photo(path: Path) -> Photo:
    if not path.name.isprintable():  # bytes that are no UTF-8 among them, which no report can be written with
        raise DatasetError(f"{str(path)!r} has a name that cannot be printed; rename it")
    content = _content(path)
    media_type = content_type(content)
    if media_type is None:
        raise DatasetError(f"{path} is {f'no {FORMATS}' if content else 'empty'}")
    return Photo(path.name, path, hashlib.sha256(content).hexdigest(), media_type)


def _content(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait
            raise DatasetError(f"{path} is no file")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror})") from error
