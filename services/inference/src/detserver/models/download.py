"""Fetching one file over HTTP, so that a dead network costs seconds, and a broken connection only what is missing."""

import hashlib
import logging
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import httpx

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 8.0
"""From the start of a request to the head of its answer: name, proxy, connection and redirects together."""

_STALL_S = 30.0
_PROGRESS_EVERY_S = 5.0


class Unreachable(Exception):
    """Raised when the network, not a file, is what fails: no name, no connection, no answer, no usable proxy."""


class DownloadFailed(Exception):
    """Raised when one file cannot be had: an error status, or a connection that broke while bytes came."""


class ChecksumMismatch(Exception):
    """Raised when a complete download is not the file that was expected; it is deleted."""


def download(url: str, path: Path, sha256_prefix: str = "") -> None:
    """Fetch `url` to `path`, which appears only when it is complete and its checksum is right.

    Goes through the proxies of the environment (`HTTPS_PROXY`, `ALL_PROXY`, ...; SOCKS too). What a broken connection
    left in `<path>.partial` is continued by the next call. It goes on for as long as bytes come.

    Args:
        sha256_prefix: first hex digits of the file's SHA-256; empty accepts any file.

    Raises:
        Unreachable: no answer within `ANSWER_WITHIN_S`, or none of the next bytes within 30 s.
        DownloadFailed: this file cannot be had.
        ChecksumMismatch: other content than expected.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with _client() as client, closing(_answer(client, url, headers)) as response:
            if response.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:  # 416: it was complete already
                response.raise_for_status()
                resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
                total = int(response.headers.get("Content-Length", 0)) + (have if resumed else 0)
                _save(response, partial, append=resumed, total=total)
    except httpx.TimeoutException as error:
        raise Unreachable(f"{url} stalled for {_STALL_S:.0f} s") from error
    except httpx.HTTPError as error:
        raise DownloadFailed(str(error).split("\n")[0] or type(error).__name__) from error
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    if not digest.startswith(sha256_prefix):
        partial.unlink()
        raise ChecksumMismatch(f"{url} has SHA-256 {digest[:16]}…, expected {sha256_prefix}…")
    partial.replace(path)


def _client() -> httpx.Client:
    try:
        return httpx.Client(timeout=httpx.Timeout(_STALL_S), follow_redirects=True)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise Unreachable(f"the proxy of the environment cannot be used: {error}") from error


def _answer(client: httpx.Client, url: str, headers: dict[str, str]) -> httpx.Response:
    """The head of the answer to a GET; its body is the caller's to read and to close.

    In a thread of its own, because a resolver that hangs knows no timeout, and one for each of several connections
    (name, proxy, redirects) would add up. A thread that hangs is left behind.
    """
    answer: Future[httpx.Response] = Future()

    def ask() -> None:
        try:
            answer.set_result(client.send(client.build_request("GET", url, headers=headers), stream=True))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name="download", daemon=True).start()
    try:
        return answer.result(ANSWER_WITHIN_S)
    except TimeoutError as error:
        raise Unreachable(f"no answer from {httpx.URL(url).host} within {ANSWER_WITHIN_S:.0f} s") from error
    except httpx.TooManyRedirects as error:
        raise DownloadFailed(str(error)) from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise Unreachable(f"no answer from {url}: {str(error) or type(error).__name__}") from error


def _save(response: httpx.Response, partial: Path, append: bool, total: int) -> None:
    last = time.monotonic()
    with partial.open("ab" if append else "wb") as file:
        for chunk in response.iter_raw():
            file.write(chunk)
            if time.monotonic() - last > _PROGRESS_EVERY_S:
                last = time.monotonic()
                log.info("%s: %.0f of %.0f MB", partial.stem, file.tell() / 1e6, total / 1e6)
