"""Photographs to send: named datasets that are fetched once, or any folder of images."""

from detbench.datasets.catalogue import NAMES, SOURCES, fetch, fetch_or_open, open_dataset
from detbench.datasets.coco_file import CocoFile, image_name, read_coco
from detbench.datasets.folder import Dataset, Photo

__all__ = [
    "NAMES",
    "SOURCES",
    "CocoFile",
    "Dataset",
    "Photo",
    "fetch",
    "fetch_or_open",
    "image_name",
    "open_dataset",
    "read_coco",
]
