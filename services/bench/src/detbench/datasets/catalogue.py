"""The named datasets, and getting one."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from detbench.datasets.coco_val2017 import CocoVal2017
from detbench.datasets.folder import Dataset, open_folder
from detbench.datasets.roboflow_aquarium import RoboflowAquarium
from detbench.datasets.sample import Sample
from detbench.datasets.source import Source
from detbench.errors import DatasetError

SOURCES: Mapping[str, Source] = {source.name: source for source in (Sample(), CocoVal2017(), RoboflowAquarium())}
NAMES = tuple(SOURCES)


def fetch(source: Source | str, data_dir: Path) -> Dataset:
    """Put a named dataset under `data_dir`; does nothing when it is there.

    Args:
        source: a name of `NAMES`, or a source of your own.

    Raises:
        DatasetError: no such dataset, or it cannot be had; what was downloaded so far is kept.
    """
    if isinstance(source, str):
        if source not in SOURCES:
            raise DatasetError(f"no dataset {source!r}; there are {', '.join(NAMES)}")
        source = SOURCES[source]
    folder = data_dir / source.name
    if not folder.is_dir():
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=f".{source.name}.") as temporary:
            made = Path(temporary) / source.name
            made.mkdir()
            source.make(made, data_dir / "downloads")
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise
    return open_folder(folder, source.name)


def open_dataset(name_or_folder: str, data_dir: Path, max_images: int | None = None) -> Dataset:
    """A named dataset that was fetched already, or any folder of images.

    Raises:
        DatasetError: it is not there; the message says how to get it.
    """
    if name_or_folder in SOURCES:
        if not (data_dir / name_or_folder).is_dir():
            raise DatasetError(
                f"{name_or_folder} is not in {data_dir}; get it with: detbench datasets {name_or_folder}"
            )
        return open_folder(data_dir / name_or_folder, name_or_folder, max_images)
    folder = Path(name_or_folder)
    if not folder.is_dir():
        raise DatasetError(
            f"{name_or_folder!r} is neither a folder of images nor a dataset; there are {', '.join(SOURCES)}"
        )
    return open_folder(folder, folder.resolve().name, max_images)


def fetch_or_open(name_or_folder: str, data_dir: Path, max_images: int | None = None) -> Dataset:
    """Like `open_dataset`, but `sample`, which needs no network, is put in place when it is missing."""
    if name_or_folder == Sample.name:
        fetch(Sample.name, data_dir)
    return open_dataset(name_or_folder, data_dir, max_images)
