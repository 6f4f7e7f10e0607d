"""Aquarium Combined, by Roboflow."""

import json
import os
from pathlib import Path

from detbench.datasets.archive import extract
from detbench.datasets.download import RemoteFile, download
from detbench.datasets.source import Source
from detbench.errors import DatasetError

URL_VARIABLE = "DETBENCH_AQUARIUM_URL"
_BOXES = "_annotations.coco.json"
_MAX_BYTES = 1_000_000_000


class RoboflowAquarium(Source):
    """Photographs of aquarium animals; the test split of the COCO export."""

    name = "roboflow_aquarium"
    summary = "aquarium animals with boxes of 7 classes, the test split"
    images = 63
    download = "your own link"
    licence = "CC BY 4.0, Roboflow"

    def make(self, target: Path, downloads: Path) -> None:
        """See `Source.make`. Roboflow's links carry a key of the person who asks, so there is none to put here."""
        url = os.environ.get(URL_VARIABLE)
        if not url:
            raise DatasetError(
                "Roboflow gives each person a download link of their own: open https://public.roboflow.com/"
                "object-detection/aquarium, choose the export `COCO`, `show download code`, `Raw URL`, and set "
                f"{URL_VARIABLE} to it"
            )
        # Roboflow publishes neither size nor checksum, and packs anew for each export.
        archive = download(RemoteFile(url, "roboflow_aquarium.zip", None, None), downloads)
        unpacked = target / "unpacked"
        extract(archive, unpacked, _MAX_BYTES)
        split = next((path for path in (unpacked / "test", unpacked) if (path / _BOXES).is_file()), None)
        if split is None:
            archive.unlink()
            raise DatasetError(
                f"the archive of {URL_VARIABLE} has no {_BOXES}: export the dataset in the format `COCO`"
            )
        boxes = json.loads((split / _BOXES).read_text())
        missing = [image["file_name"] for image in boxes["images"] if not (split / image["file_name"]).is_file()]
        if missing:
            archive.unlink()
            raise DatasetError(
                f"the archive lacks {len(missing)} annotated images, first {missing[0]}; export it again"
            )
        (target / "images").mkdir()
        for image in boxes["images"]:
            (split / image["file_name"]).rename(target / "images" / image["file_name"])
        (split / _BOXES).rename(target / "instances.json")
        archive.unlink()
