"""Fetching one file over HTTP so that a broken connection costs only what was not fetched yet."""

import hashlib
import logging
import time
from pathlib import Path

import httpx

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 5.0
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class ChecksumMismatch(Exception):
    """Raised when a complete download is not the file that was expected; it is deleted."""


def download(url: str, path: Path, sha256_prefix: str = "") -> None:
    """Fetch `url` to `path`, which appears only when it is complete and its checksum is right.

    What a broken connection left in `<path>.partial` is continued by the next call.

    Args:
        sha256_prefix: first hex digits of the file's SHA-256; empty accepts any file.

    Raises:
        httpx.HTTPError: no connection, a broken one, or an error status.
        ChecksumMismatch: other content than expected.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with httpx.stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as response:
        if response.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:  # 416: it was complete already
            response.raise_for_status()
            resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
            total = int(response.headers.get("Content-Length", 0)) + (have if resumed else 0)
            _save(response, partial, append=resumed, total=total)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    if not digest.startswith(sha256_prefix):
        partial.unlink()
        raise ChecksumMismatch(f"{url} has SHA-256 {digest[:16]}…, expected {sha256_prefix}…")
    partial.replace(path)


def _save(response: httpx.Response, partial: Path, append: bool, total: int) -> None:
    last = time.monotonic()
    with partial.open("ab" if append else "wb") as file:
        for chunk in response.iter_raw():
            file.write(chunk)
            if time.monotonic() - last > _PROGRESS_EVERY_S:
                last = time.monotonic()
                log.info("%s: %.0f of %.0f MB", partial.stem, file.tell() / 1e6, total / 1e6)
