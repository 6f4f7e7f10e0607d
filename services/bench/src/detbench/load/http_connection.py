"""One keep-alive connection to a server, with as little around its socket as can be.

What an HTTP client does of its own between a request and the time of its answer (URLs, headers, cookies, redirects)
would count as the server's. So would the time until a process that has slept, or is busy with another answer, comes to
read: the kernel's stamps tell when an answer has arrived.
"""

import contextlib
import socket
import struct
import sys
import time
from base64 import b64encode
from dataclasses import dataclass
from select import POLLIN
from urllib.parse import unquote, urlsplit

import certifi
import gevent.socket
import gevent.ssl
from gevent.monkey import get_original
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError, HTTPSocketResponse

from detbench.api.protocol import Message

_CONNECT_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 600.0
_BLOCK_SIZE = 1 << 16
# socket(7) and asm-generic/socket.h: with each read a `struct timespec`, on CLOCK_REALTIME.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("ll")
# gevent's lets others run, and what is to be sent now would wait for them.
_poll = get_original("select", "poll")


@dataclass(frozen=True)
class Answer:
    """What came back for one request.

    Attributes:
        answered_s: when its last byte arrived, or it was known that none comes; on CLOCK_MONOTONIC.
        status_code: 0 where there is no answer.
        error: why there is none, or not the whole of it.
    """

    answered_s: float
    status_code: int = 0
    content: bytes = b""
    error: str = ""


class _TimedSocket(gevent.socket.socket):
    """Knows when what it returned last had arrived (`arrived_s`, on CLOCK_MONOTONIC)."""

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.arrived_s = 0.0
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a sandbox without it: the time of reading, then
                self.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """What there is, with the kernel's stamp where it puts one."""
        content, ancillary, _, _ = self.recvmsg(size, socket.CMSG_SPACE(_TIMESPEC.size), flags)
        self.arrived_s = time.monotonic()
        for level, kind, stamp in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(stamp)
                self.arrived_s -= time.time() - (seconds + nanoseconds / 1e9)
        return content


class Connection:
    """Sends one request after the other; opened by the first, and again when the server has closed it.

    Args:
        host: base URL of the server, http or https; a name and a password in it are sent along.
    """

    def __init__(self, host: str) -> None:
        url = urlsplit(host)
        assert url.hostname is not None
        netloc = url.netloc.rpartition("@")[2]
        self._prefix = url.path.rstrip("/")
        self._headers = f"Host: {netloc}\r\nUser-Agent: detbench\r\n"
        if url.username is not None:
            credentials = f"{unquote(url.username)}:{unquote(url.password or '')}"
            self._headers += f"Authorization: Basic {b64encode(credentials.encode()).decode()}\r\n"
        encrypted = url.scheme == "https"
        self._address = (url.hostname, url.port or (443 if encrypted else 80))
        self._tls = gevent.ssl.create_default_context() if encrypted else None
        if self._tls is not None:
            self._tls.load_verify_locations(certifi.where())  # as httpx does, which asks the server first
        self._socket: gevent.socket.socket | None = None

    def get_message(self, path: str) -> bytes:
        """A request for `path`, which begins with a slash; for `send`."""
        return f"GET {self._prefix}{path} HTTP/1.1\r\n{self._headers}\r\n".encode()

    def post_message(self, message: Message) -> bytes:
        """The bytes of a request; for `send`."""
        further = "".join(f"{name}: {value}\r\n" for name, value in message.headers.items())
        head = (
            f"POST {self._prefix}{message.path} HTTP/1.1\r\n{self._headers}{further}"
            f"Content-Type: {message.content_type}\r\nContent-Length: {sum(map(len, message.content))}\r\n"
            # Nothing is refused for the time that it would take: how long an overloaded server takes is to be seen.
            f"X-Deadline-Ms: {1e3 * _ANSWER_TIMEOUT_S:.0f}\r\n\r\n"
        )
        return b"".join((head.encode(), *message.content))

    def send(self, message: bytes) -> Answer:
        """Send a request, and wait for its answer."""
        began_s, response = time.monotonic(), None
        try:
            connected = self._open()
            # A server may answer before it has read everything, and close: 413, for example.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connected.sendall(message)
            response = HTTPSocketResponse(connected, _BLOCK_SIZE, method="POST")
            content = response.read()
        except (OSError, HTTPParseError) as error:
            self._socket = None
            if response is not None:
                return Answer(time.monotonic(), response.status_code, error="truncated answer")
            return Answer(time.monotonic(), error=f"no answer: {_reason(error)}")
        answered_s = time.monotonic()
        if isinstance(connected, _TimedSocket):  # between two times, should CLOCK_REALTIME have been set meanwhile
            answered_s = min(max(began_s, connected.arrived_s), answered_s)
        return Answer(answered_s, response.status_code, content)

    def _open(self) -> gevent.socket.socket:
        """The connection as it is, unless the server has closed it: then there is something to read, its end."""
        if self._socket is not None and self._socket.fileno() >= 0:
            waiting = _poll()
            waiting.register(self._socket.fileno(), POLLIN)
            if not waiting.poll(0):
                return self._socket
        plain = gevent.socket.create_connection(self._address, _CONNECT_TIMEOUT_S)
        if self._tls is None:
            self._socket = _TimedSocket(fileno=plain.detach())
        else:
            self._socket = self._tls.wrap_socket(plain, server_hostname=self._address[0])
        self._socket.settimeout(_ANSWER_TIMEOUT_S)
        return self._socket


def _reason(error: OSError | HTTPParseError) -> str:
    """In words that equal failures share."""
    if isinstance(error, OSError):  # time-outs have no strerror
        return (error.strerror or str(error) or "timed out").lower()
    return "connection closed" if isinstance(error, HTTPConnectionClosed) else "no HTTP, or cut"
