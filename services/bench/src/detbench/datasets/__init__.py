"""Photographs to send: named datasets that are fetched once, or any folder of images."""

from dataclasses import dataclass
from pathlib import Path


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
