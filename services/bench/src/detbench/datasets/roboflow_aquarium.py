"""Aquarium Combined, by Roboflow."""

from pathlib import Path

from detbench.datasets.archive import extract
from detbench.datasets.download import RemoteFile, download
from detbench.datasets.layout import pictures
from detbench.datasets.source import Source
from detbench.errors import DatasetError
from detbench.variables import web_address

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
        url = web_address(URL_VARIABLE)
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
        (target / "images").mkdir()
        for path in pictures(split):
            path.rename(target / "images" / path.name)
        (split / _BOXES).rename(target / "instances.json")
        archive.unlink()
