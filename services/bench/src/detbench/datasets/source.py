"""What a named dataset is."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar


class Source(ABC):
    """Where a named dataset comes from.

    Class attributes:
        name: on the command line, and its folder's.
        summary: one line.
        images: how many.
        download: size of what is fetched, for people.
        licence: of the photographs.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    images: ClassVar[int]
    download: ClassVar[str]
    licence: ClassVar[str]

    @abstractmethod
    def make(self, target: Path, downloads: Path) -> None:
        """Fill the empty folder `target` with `images/` and, where there are annotations, `instances.json`.

        Args:
            target: a temporary folder, renamed when this returns.
            downloads: for what is fetched; a broken download is kept there, and a used one is to be deleted.

        Raises:
            DatasetError: what went wrong, and the remedy.
        """
