"""A folder of images as a dataset."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from detbench.errors import DatasetError

CONTENT_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
}
# Where COCO annotations of a folder usually lie: ours, Roboflow's export, COCO's own layout.
_ANNOTATIONS = ("instances.json", "annotations.json", "_annotations.coco.json", "annotations/instances_*.json")


@dataclass(frozen=True)
class Photo:
    """One image file; `sha256` is that of the file, `content_type` its media type."""

    name: str
    path: Path
    sha256: str
    content_type: str


@dataclass(frozen=True)
class Dataset:
    """Photos in the order of their names, and the COCO annotation file that belongs to them, where there is one."""

    name: str
    photos: tuple[Photo, ...]
    annotations: Path | None


def open_folder(folder: Path, name: str, max_images: int | None = None) -> Dataset:
    """The images of a folder, or of its subfolder `images`.

    Args:
        max_images: use the first so many, by name; None is all.

    Raises:
        DatasetError: no image there, or `max_images` is below 1.
    """
    if max_images is not None and max_images < 1:
        raise DatasetError(f"the number of images is {max_images}; it must be 1 or more")
    images = folder / "images" if (folder / "images").is_dir() else folder
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in CONTENT_TYPES and path.is_file())
    if not files:
        raise DatasetError(f"{images} holds no image ({', '.join(CONTENT_TYPES)}); name a folder that does")
    annotations = next(
        (found for place in (folder, images) for pattern in _ANNOTATIONS for found in sorted(place.glob(pattern))), None
    )
    return Dataset(name, tuple(_photo(path) for path in files[:max_images]), annotations)


def _photo(path: Path) -> Photo:
    content = path.read_bytes()
    return Photo(path.name, path, hashlib.sha256(content).hexdigest(), CONTENT_TYPES[path.suffix.lower()])
