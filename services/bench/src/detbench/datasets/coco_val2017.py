"""COCO val2017."""

from dataclasses import replace
from pathlib import Path

from detbench.datasets.archive import extract
from detbench.datasets.download import RemoteFile, download
from detbench.datasets.source import Source
from detbench.errors import DatasetError
from detbench.variables import web_address

# Sizes and checksums of the files as cocodataset.org serves them.
IMAGES = RemoteFile(
    "http://images.cocodataset.org/zips/val2017.zip",
    "val2017.zip",
    815_585_330,
    "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
)
ANNOTATIONS = RemoteFile(
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    "annotations_trainval2017.zip",
    252_907_541,
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
)
# Unpacked they are 0.8 and 0.8 GB.
_MAX_BYTES = 4_000_000_000


class CocoVal2017(Source):
    """The 5,000 images that detectors are compared on.

    Args:
        images: the archive of the photographs.
        annotations: the archive of the boxes.
    """

    name = "coco_val2017"
    summary = "COCO 2017 validation set with boxes of 80 classes"
    images = 5000
    download = "1.07 GB"
    licence = "photographs: Flickr's, each its own; annotations: CC BY 4.0"

    def __init__(self, images: RemoteFile = IMAGES, annotations: RemoteFile = ANNOTATIONS) -> None:
        self._images = images
        self._annotations = annotations

    def make(self, target: Path, downloads: Path) -> None:
        """See `Source.make`."""
        archives = [
            download(_overridden(file, variable), downloads)
            for file, variable in (
                (self._images, "DETBENCH_COCO_IMAGES_URL"),
                (self._annotations, "DETBENCH_COCO_ANNOTATIONS_URL"),
            )
        ]
        unpacked = target / "unpacked"
        for archive in archives:
            extract(archive, unpacked, _MAX_BYTES)
        photos, boxes = unpacked / "val2017", unpacked / "annotations" / "instances_val2017.json"
        if not photos.is_dir() or not boxes.is_file():
            raise DatasetError(f"the archives hold no {photos.name}/ or no {boxes.name}; delete {downloads}, try again")
        photos.rename(target / "images")
        boxes.rename(target / "instances.json")
        for archive in archives:
            archive.unlink()


def _overridden(file: RemoteFile, variable: str) -> RemoteFile:
    """The same file from a mirror: size and checksum still hold."""
    return replace(file, url=web_address(variable) or file.url)
