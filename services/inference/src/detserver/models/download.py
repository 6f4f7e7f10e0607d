"""Fetching one weights file over HTTP, so that a dead network costs seconds.

Our own because no library has the deadline: urllib (torch.hub) and requests (pooch) wait for a resolver that hangs, and
urllib knows no SOCKS proxy.
"""

import hashlib
import logging
import tempfile
import threading
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import httpx

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 8.0
"""From the start of a request to the head of its answer: name, proxy, connection and redirects together."""

_STALL_S = 30.0


class Unreachable(Exception):
    """Raised when the network, not a file, is what fails: no name, no connection, no answer, no usable proxy."""


class DownloadFailed(Exception):
    """Raised when one file cannot be had: an error status, or a connection that broke while bytes came."""


class ChecksumMismatch(Exception):
    """Raised when a complete download is not the file that was expected; it is deleted."""


def download(url: str, path: Path, sha256_prefix: str = "") -> None:
    """Fetch `url` to `path`, which appears only when it is complete and its checksum is right.

    Goes through the proxies of the environment (`HTTPS_PROXY`, `ALL_PROXY`, ...; SOCKS too), and on for as long as
    bytes come.

    Args:
        sha256_prefix: first hex digits of the file's SHA-256; empty accepts any file.

    Raises:
        Unreachable: no answer within `ANSWER_WITHIN_S`, or none of the next bytes within 30 s.
        DownloadFailed: this file cannot be had.
        ChecksumMismatch: other content than expected.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial, digest = Path(folder) / path.name, hashlib.sha256()
        try:
            with _client() as client, closing(_answer(client, url)) as response, partial.open("wb") as file:
                response.raise_for_status()
                log.info("%s: %.0f MB", path.name, int(response.headers.get("Content-Length", 0)) / 1e6)
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    digest.update(chunk)
        except httpx.TimeoutException as error:
            raise Unreachable(f"{url} stalled for {_STALL_S:.0f} s") from error
        except httpx.HTTPError as error:
            raise DownloadFailed(str(error).split("\n")[0] or type(error).__name__) from error
        if not digest.hexdigest().startswith(sha256_prefix):
            raise ChecksumMismatch(f"{url} has SHA-256 {digest.hexdigest()[:16]}…, expected {sha256_prefix}…")
        partial.replace(path)


def _client() -> httpx.Client:
    try:
        return httpx.Client(timeout=httpx.Timeout(_STALL_S), follow_redirects=True)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise Unreachable(f"the proxy of the environment cannot be used: {error}") from error


def _answer(client: httpx.Client, url: str) -> httpx.Response:
    """The head of the answer to a GET; its body is the caller's to read and to close.

    In a thread of its own, because a resolver that hangs knows no timeout, and one for each of several connections
    (name, proxy, redirects) would add up. A thread that hangs is left behind.
    """
    answer: Future[httpx.Response] = Future()

    def ask() -> None:
        try:
            answer.set_result(client.send(client.build_request("GET", url), stream=True))
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
