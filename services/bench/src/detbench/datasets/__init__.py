"""Photographs to send: named datasets that are fetched once, or any folder of images."""

from detbench.datasets.catalogue import NAMES, SOURCES, fetch, fetch_or_open, open_dataset
from detbench.datasets.folder import Dataset, Photo

__all__ = ["NAMES", "SOURCES", "Dataset", "Photo", "fetch", "fetch_or_open", "open_dataset"]
