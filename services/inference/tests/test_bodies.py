"""What bodies a request may have, and that whatever goes wrong is one line of JSON, counted, in the log once."""

import gzip
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from running_server import PROCESS, RunningServer

BOUNDARY = "----boundary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture(scope="module")
def photo(photos: list[Path]) -> bytes:
    return photos[3].read_bytes()


def part(data: bytes, disposition: str = 'form-data; name="file"', *headers: str) -> bytes:
    lines = [f"--{BOUNDARY}", f"Content-Disposition: {disposition}", *headers, ""]
    return "\r\n".join(lines).encode() + b"\r\n" + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
NAMED = 'form-data; name="file"; filename="photo.jpg"'
TEXT = part(b"text", 'form-data; name="comment"')


def form(*parts: bytes, end: bytes = END, headers: dict[str, str] = FORM) -> dict:
    return {"content": b"".join(parts) + end, "headers": headers}


def raw(data: bytes, kind: str | None, **headers: str) -> dict:
    return {"content": data, "headers": headers | ({"Content-Type": kind} if kind else {})}


BODIES: dict[str, tuple[int, Callable[[bytes], dict]]] = {
    "a file": (200, lambda photo: form(part(photo, NAMED, "Content-Type: image/jpeg"))),
    "a file without a name": (200, lambda photo: form(part(photo))),
    "a file with an empty name": (200, lambda photo: form(part(photo, 'form-data; name="file"; filename=""'))),
    "a name in another writing": (
        200,
        lambda photo: form(part(photo, "form-data; name=file; filename*=UTF-8''%e6%97%a5.jpg")),
    ),
    "a file among other fields": (200, lambda photo: form(TEXT, part(photo, NAMED), TEXT)),
    "a big file beside it": (200, lambda photo: form(part(bytes(5_000_000), 'form-data; name="x"'), part(photo))),
    "thirty other fields": (200, lambda photo: form(*[TEXT] * 30, part(photo, NAMED))),
    "two files, the first counts": (200, lambda photo: form(part(photo, NAMED), part(b"no picture", NAMED))),
    "two files, the first is no picture": (400, lambda photo: form(part(b"no picture", NAMED), part(photo, NAMED))),
    "a boundary in quotes": (
        200,
        lambda photo: form(
            part(photo), headers={"Content-Type": f'Multipart/Form-Data; charset=x; boundary="{BOUNDARY}"'}
        ),
    ),
    "bytes before and behind the form": (200, lambda photo: form(b"\r\n", part(photo), end=END + b"epilogue")),
    "a field of another name": (422, lambda photo: form(part(photo, 'form-data; name="image"'))),
    "no field": (422, lambda _: form()),
    "an empty file": (400, lambda _: form(part(b""))),
    "a part without a name": (422, lambda photo: form(part(photo, "form-data"))),
    "a part without headers": (422, lambda photo: form(f"--{BOUNDARY}\r\n\r\n".encode() + photo + b"\r\n")),
    "another boundary": (
        400,
        lambda photo: form(part(photo), headers={"Content-Type": "multipart/form-data; boundary=x"}),
    ),
    "no boundary": (400, lambda photo: form(part(photo), headers={"Content-Type": "multipart/form-data"})),
    "a boundary of 10 kB": (
        400,
        lambda photo: form(part(photo), headers={"Content-Type": "multipart/form-data; boundary=" + "x" * 10_000}),
    ),
    "no end": (400, lambda photo: form(part(photo), end=b"")),
    "a huge header of a part": (400, lambda photo: form(part(photo, NAMED, "X: " + "x" * 1_000_000))),
    "thousands of headers of a part": (400, lambda photo: form(part(photo, NAMED, *["X: x"] * 10_000))),
    "a photo": (200, lambda photo: raw(photo, "image/jpeg")),
    "a photo of another type than it says": (200, lambda photo: raw(photo, "image/png")),
    "bytes": (200, lambda photo: raw(photo, "application/octet-stream")),
    "bytes that are no picture": (400, lambda _: raw(b"no picture", "application/octet-stream")),
    "no type": (415, lambda photo: raw(photo, None)),
    "curl's type": (415, lambda photo: raw(photo, "application/x-www-form-urlencoded")),
    "json": (415, lambda _: raw(b"{}", "application/json")),
    "a type that is none": (415, lambda photo: raw(photo, ";;,")),
    "compressed": (415, lambda photo: raw(gzip.compress(photo), "image/jpeg", **{"Content-Encoding": "gzip"})),
    "compressed twice": (415, lambda photo: raw(photo, "image/jpeg", **{"Content-Encoding": "br, GZIP"})),
    "a compressed form": (415, lambda photo: form(part(photo), headers=FORM | {"Content-Encoding": "deflate"})),
    "not compressed": (200, lambda photo: raw(photo, "image/jpeg", **{"Content-Encoding": "identity"})),
}


def one_line(answer: httpx.Response) -> str:
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert detail
    assert "\n" not in detail
    return detail


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_answered_or_refused_in_one_line(server: RunningServer, photo: bytes, name: str):
    status, request = BODIES[name]
    answer = server.infer("invalid", **request(photo))
    assert answer.status_code == status, answer.text
    if status != 200:
        one_line(answer)
    assert "Traceback" not in server.log


PATHS = {
    "/nowhere": 404,
    "/infer": 404,
    "/infer/%00": 404,
    "/infer/%0A%0D": 404,
    "/infer/%FF%FE": 404,
    "/infer/%E6%97%A5": 404,
    "/infer/invalid%2F..%2Fhealth": 404,
    "/infer/" + "x" * 5000: 404,
    "/infer/invalid?model_set=%0A%00": 404,
    "/infer/invalid?model_set=%FF": 404,
    "/infer/in%76alid": 200,
    "/infer/invalid?model_set=": 200,
    "/infer/invalid?model_set=nothing&model_set=mixed": 200,
    "/health": 405,
    "/time/invalid?batch_size=65": 422,
    "/time/invalid?batch_size=many&repeats=x": 422,
    "/implementations/%0A/load": 404,
}


@pytest.mark.parametrize("path", PATHS)
def test_any_path_has_an_answer_in_one_line(server: RunningServer, photo: bytes, path: str):
    answer = httpx.post(server.url + path, **raw(photo, "image/jpeg"), timeout=60)
    assert answer.status_code == PATHS[path], answer.text
    if answer.status_code != 200:
        one_line(answer)
    assert "Traceback" not in server.log


def test_head_of_what_can_be_got_is_the_same_without_a_body(server: RunningServer):
    schema = httpx.get(f"{server.url}/openapi.json").json()
    paths = [path for path, methods in schema["paths"].items() if "get" in methods]
    assert {"/health", "/ready", "/metrics", "/vram", "/implementations"} <= set(paths)
    for path in [*(path.replace("{model_set}", "quick") for path in paths), "/docs", "/openapi.json", "/nowhere"]:
        # On one connection: a body would be taken for the next answer.
        with httpx.Client(base_url=server.url) as client:
            head, got = client.head(path), client.get(path)
        assert head.status_code == got.status_code
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
        assert head.content == b""
    assert httpx.head(f"{server.url}/infer/invalid").status_code == 405
    assert all("head" not in methods for methods in schema["paths"].values())


def talk(server: RunningServer, *sent: bytes, end: bool = False) -> bytes:
    """Send bytes as they are; everything that comes back until the server closes."""
    address = urlsplit(server.url)
    received = b""
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        for piece in sent:
            connection.sendall(piece)
        if end:
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            received += piece
    return received


HEAD = b"POST /infer/invalid HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/jpeg\r\n"


def status_of(received: bytes) -> int:
    return int(received.split()[1])


def test_a_body_in_chunks_is_a_body(server: RunningServer, photo: bytes):
    chunks = [b"%x\r\n" % len(piece) + piece + b"\r\n" for piece in (photo[:1000], photo[1000:])]
    assert status_of(talk(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")) == 200
    assert status_of(talk(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n")) == 400


def test_a_client_that_waits_for_100_continue_gets_it_where_its_body_is_wanted(server: RunningServer, photo: bytes):
    expect = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    received = talk(server, HEAD + expect % len(photo), photo)
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert status_of(talk(server, HEAD + expect % 10**9)) == 413


def rejected(server: RunningServer, reason: str) -> float:
    metrics = httpx.get(f"{server.url}/metrics").text
    return float(re.search(rf'detserver_rejected_total{{reason="{reason}"}} (\S+)', metrics)[1])


@pytest.mark.parametrize("length", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
def test_a_client_that_leaves_before_its_body_is_there_is_counted_and_no_error(server, photo: bytes, length: bytes):
    before = rejected(server, "ClientGone")
    talk(server, HEAD + length + b"\r\n\r\n", b"3e8\r\n" + photo[:1000], end=True)
    while rejected(server, "ClientGone") == before:
        time.sleep(0.05)
    assert server.infer("invalid", **raw(photo, "image/jpeg")).status_code == 200
    assert "Traceback" not in server.log


def test_a_client_that_leaves_before_its_answer_is_there_is_counted(server: RunningServer, photo: bytes):
    before = rejected(server, "ClientGone")
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{server.url}/infer/baseline", **raw(photo, "image/jpeg"), timeout=0.05)
    while rejected(server, "ClientGone") == before:
        time.sleep(0.05)
    assert server.infer("invalid", **raw(photo, "image/jpeg")).status_code == 200
    assert "Traceback" not in server.log


def test_slow_clients_keep_nobody_out(server: RunningServer, photo: bytes):
    address = httpx.URL(server.url)
    with ExitStack() as slow:
        for _ in range(100):  # three times as many as there are places
            client = slow.enter_context(socket.create_connection((address.host, address.port)))
            client.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n" + photo[:1000])
        assert server.infer("invalid", **raw(photo, "image/jpeg")).status_code == 200


def test_a_length_that_lies_harms_nobody_else(server: RunningServer, photo: bytes):
    shorter = talk(server, HEAD + b"Content-Length: 100\r\n\r\n", photo[:500])
    assert status_of(shorter) == 400
    for length in (b"-1", b"x", b"99999999999999999999999", "\u00b2".encode()):
        assert status_of(talk(server, HEAD + b"Content-Length: " + length + b"\r\n\r\n")) in (400, 413)
    assert server.infer("invalid", **raw(photo, "image/jpeg")).status_code == 200
    assert "Traceback" not in server.log


def test_a_body_that_does_not_come_is_408_and_its_connection_ends(start_server, photo: bytes):
    server = start_server(preload="invalid", body_timeout_s="0.5")
    received = talk(server, HEAD + b"Content-Length: 1000\r\n\r\n", photo[:10])
    assert status_of(received) == 408
    assert b"connection: close" in received.lower()


PLUGIN = """
from detserver.implementations.base import BaseModelImpl

class Broken(BaseModelImpl):
    name, description, exact = "broken", "for the tests", False

    def load(self):
        pass

    def predict(self, image):
        raise ValueError("a bug\\nof two lines")

class Unready(Broken):
    name = "unready"

    @classmethod
    def unsupported_reason(cls, model_set):
        raise KeyError("a bug, too")
"""


@pytest.fixture
def broken_server(start_server, tmp_path: Path, monkeypatch) -> RunningServer:
    """A server with implementations that fail: one where that is expected, and one where it is not."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    metadata = tmp_path / "plugin-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 0\n")
    points = "[detserver.implementations]\nbroken = plugin:Broken\nunready = plugin:Unready\n"
    (metadata / "entry_points.txt").write_text(points)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return start_server(program=PROCESS, preload="")


@pytest.mark.slow
def test_every_500_is_json_counted_and_in_the_log_once(broken_server, photo: bytes):
    for name, reason in (("broken", "InferenceFailed"), ("unready", "InternalError")):
        logged = len(broken_server.log)
        answer = broken_server.infer(name, **raw(photo, "image/jpeg"))
        assert answer.status_code == 500
        one_line(answer)
        assert rejected(broken_server, reason) == 1
        metrics = httpx.get(f"{broken_server.url}/metrics").text
        assert f'detserver_requests_total{{implementation="{name}",model_set="quick",status="500"}} 1.0' in metrics
        assert broken_server.log[logged:].count("Traceback (most recent call last)") == 1
