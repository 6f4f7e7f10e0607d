"""Fetching a large file over HTTP: with progress, continued after a break, and checked before anybody uses it.

Our own because pooch, torchvision and fsspec begin anew after a break, and what huggingface_hub does is not public.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from socksio import SOCKSError  # httpx does not make one of its own of it
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from detbench.errors import DatasetError

_TIMEOUT = httpx.Timeout(60.0, connect=15.0)
_ATTEMPTS = 5


@dataclass(frozen=True)
class RemoteFile:
    """A file on the network. `size_bytes` and `sha256` (hex) are None where its publisher does not tell them."""

    url: str
    name: str
    size_bytes: int | None
    sha256: str | None


def download(file: RemoteFile, folder: Path, retry_wait_s: float = 1.0) -> Path:
    """Fetch a file into `folder`; what an earlier call left there is continued, or used when it is complete.

    Args:
        retry_wait_s: pause after the first broken connection; it doubles with each.

    Returns:
        Path of the complete, checked file.

    Raises:
        DatasetError: it cannot be fetched, the disk is too small, or it is not the file that was expected.
    """
    path = folder / file.name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential(multiplier=retry_wait_s, max=30),
        reraise=True,
    )
    try:
        with _client() as client, Progress(*columns, console=Console(stderr=True)) as progress:
            show = functools.partial(progress.update, progress.add_task(file.name, total=file.size_bytes))
            retrying(_continue, client, file, partial, show)
    except httpx.HTTPStatusError as error:
        raise DatasetError(
            f"{file.url} cannot be fetched (HTTP {error.response.status_code}); name a mirror (see --help)"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, SOCKSError) as error:
        through = f" through {proxies}" if (proxies := _proxy_variables()) else ""
        raise DatasetError(
            f"{file.url} cannot be fetched{through} ({error or type(error).__name__}); call again to go on, "
            "or name a mirror (see --help)"
        ) from error
    except OSError as error:
        raise DatasetError(f"{partial} cannot be written: {error}") from error
    _check(file, partial)
    partial.replace(path)
    return path


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt makes sense: a broken connection or a busy server, not a refusal."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == httpx.codes.TOO_MANY_REQUESTS
    return isinstance(error, httpx.TransportError)


def _client() -> httpx.Client:
    """A client that goes through the proxies of the environment, SOCKS ones too."""
    try:
        return httpx.Client(timeout=_TIMEOUT, follow_redirects=True)
    except (ValueError, httpx.InvalidURL) as error:
        raise DatasetError(f"no proxy can be made of {_proxy_variables()} ({error}); correct or unset it") from error


def _proxy_variables() -> str:
    """Names of the variables that name a proxy."""
    names = ("http_proxy", "https_proxy", "all_proxy")
    return ", ".join(name for name in os.environ if name.lower() in names and os.environ[name])


def _continue(client: httpx.Client, file: RemoteFile, partial: Path, show: Callable[..., None]) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if file.size_bytes is not None and have >= file.size_bytes:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", file.url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # of unknown size, and complete
        response.raise_for_status()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            have = 0  # the server does not do ranges: from the start
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else file.size_bytes
        free = shutil.disk_usage(partial.parent).free
        if total is not None and total - have > free:
            raise DatasetError(
                f"{file.name} needs {(total - have) / 1e6:.0f} MB; {partial.parent} has {free / 1e6:.0f} MB free"
            )
        with partial.open("ab" if have else "wb") as out:
            for chunk in response.iter_raw():
                out.write(chunk)
                show(completed=out.tell(), total=total)


def _check(file: RemoteFile, partial: Path) -> None:
    size = partial.stat().st_size
    with partial.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    wrong = []
    if file.size_bytes is not None and size != file.size_bytes:
        wrong.append(f"{size} bytes instead of {file.size_bytes}")
    if file.sha256 is not None and digest != file.sha256:
        wrong.append(f"SHA-256 {digest} instead of {file.sha256}")
    if wrong:
        partial.unlink()
        raise DatasetError(f"{file.url} is not the expected file ({'; '.join(wrong)}); it was deleted, try again")
