"""Unpacking a zip that came from the network."""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from detbench.errors import DatasetError


def extract(archive: Path, target: Path, max_bytes: int) -> None:
    """Unpack a zip into `target`, or nothing at all.

    Args:
        max_bytes: limit for all unpacked files together, so that a small archive cannot fill the disk.

    Raises:
        DatasetError: no zip, damaged, too large, or a member that would land outside of `target` or is a link.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            total = sum(member.file_size for member in members)
            if total > max_bytes:
                raise DatasetError(f"{archive.name} unpacks to {total / 1e6:.0f} MB, over the {max_bytes / 1e6:.0f} MB")
            for member in members:
                _check(archive, member)
            for member in members:
                path = target / member.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as packed, path.open("wb") as out:
                    shutil.copyfileobj(packed, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DatasetError(f"{archive} is no zip, or a damaged one ({error}); delete it and try again") from error


def _check(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
        raise DatasetError(f"{archive.name} is refused: {member.filename!r} would land outside of its folder")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DatasetError(f"{archive.name} is refused: {member.filename!r} is a link")
