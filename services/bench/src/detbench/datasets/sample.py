"""Photographs from inside a PyPI package: there without any download."""

import shutil
from importlib.util import find_spec
from pathlib import Path

from detbench.datasets.source import Source
from detbench.errors import DatasetError

PHOTOS = {
    "astronaut.png": "Eileen Collins, by NASA; public domain",
    "chelsea.png": "Chelsea the cat, by Stéfan van der Walt; CC0",
    "coffee.png": "a cup of coffee, by Rachel Michetti; CC0",
    "rocket.jpg": "launch of a Falcon 9, by SpaceX; public domain",
}


class Sample(Source):
    """Photographs that come with scikit-image (skimage/data, its data/README.txt)."""

    name = "sample"
    summary = "photographs from inside the package scikit-image, without boxes"
    images = len(PHOTOS)
    download = "none"
    licence = "public domain, CC0"

    def make(self, target: Path, downloads: Path) -> None:  # noqa: ARG002 (nothing is fetched)
        """See `Source.make`."""
        package = find_spec("skimage")
        if package is None or package.origin is None:
            raise DatasetError("the package scikit-image is not installed; run `make install`")
        (target / "images").mkdir()
        for name in PHOTOS:
            shutil.copyfile(Path(package.origin).parent / "data" / name, target / "images" / name)
        lines = [f"{name}: {origin}" for name, origin in PHOTOS.items()]
        (target / "LICENCE.txt").write_text("\n".join([*lines, ""]))
