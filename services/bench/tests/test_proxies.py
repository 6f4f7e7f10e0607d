"""Proxies that the environment names: downloads go through them, calls of our own servers do not."""

import hashlib
import http.server
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_server import StubServer, entry

from detbench.api.client import ServerClient
from detbench.datasets.download import RemoteFile, download
from detbench.errors import DatasetError
from detbench.measure.server_process import ServerProcess, free_port

LOCUSTFILE = Path(__file__).parents[1] / "src" / "detbench" / "load" / "locustfile.py"
CONTENT = bytes(range(256)) * 100
# A name that does not resolve: only a proxy can fetch from there.
FILE = RemoteFile("http://files.invalid/some.zip", "some.zip", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
VARIABLES = tuple(
    name for each in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (each, each.upper())
)


class HttpProxy(http.server.BaseHTTPRequestHandler):
    """Answers for the world behind it; `asked` is what it was asked for."""

    asked: list[str] = []  # noqa: RUF012 (of a subclass in each test)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        pass


class SocksProxy(HttpProxy):
    """The same behind a SOCKS5 handshake (RFC 1928), without authentication."""

    def handle(self) -> None:
        version, methods = self.rfile.read(2)
        self.rfile.read(methods)
        self.wfile.write(bytes([version, 0]))
        _, command, _, kind = self.rfile.read(4)
        assert (version, command, kind) == (5, 1, 3)  # connect, to a name
        name = self.rfile.read(self.rfile.read(1)[0]).decode()
        port = int.from_bytes(self.rfile.read(2))
        self.asked.append(f"{name}:{port}")
        self.wfile.write(bytes([version, 0, 0, 1, 0, 0, 0, 0, 0, 0]))
        super().handle()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=[HttpProxy, SocksProxy])
def proxy(request) -> Iterator[tuple[str, list[str]]]:
    """Address of a proxy without its scheme, and what it was asked for."""
    handler = type("Handler", (request.param,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()


@pytest.fixture
def dead_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable that names a proxy names one that is not there."""
    port = free_port()
    for name in VARIABLES:
        if not name.lower().startswith("no_"):
            monkeypatch.setenv(name, f"{'socks5h' if name.lower() == 'all_proxy' else 'http'}://127.0.0.1:{port}")


def test_a_download_goes_through_a_proxy(proxy, tmp_path: Path, monkeypatch, request):
    address, asked = proxy
    socks = "SocksProxy" in request.node.name
    monkeypatch.setenv("all_proxy" if socks else "http_proxy", f"{'socks5h' if socks else 'http'}://{address}")
    assert download(FILE, tmp_path).read_bytes() == CONTENT
    assert asked == (["files.invalid:80", "/some.zip"] if socks else [FILE.url])


@pytest.mark.parametrize("unusable", ["ftp://127.0.0.1:9", "socks4://127.0.0.1:9", "http://127.0.0.1:port"])
def test_an_unusable_proxy_is_told_in_one_line(tmp_path: Path, monkeypatch, unusable: str):
    monkeypatch.setenv("http_proxy", unusable)
    with pytest.raises(DatasetError, match=r"http_proxy .*correct or unset it") as told:
        download(FILE, tmp_path, retry_wait_s=0)
    assert "\n" not in str(told.value)


def test_a_proxy_that_does_not_answer_is_named(tmp_path: Path, dead_proxies):
    with pytest.raises(DatasetError, match=r"cannot be fetched through http_proxy, .*refused"):
        download(FILE, tmp_path, retry_wait_s=0)


class NoSocks(socketserver.StreamRequestHandler):
    """What an HTTP proxy says to a SOCKS handshake."""

    def handle(self) -> None:
        self.rfile.read(1)
        self.wfile.write(b"HTTP/1.0 400 Bad request\r\n\r\n")


def test_a_proxy_that_does_not_speak_socks_is_told(tmp_path: Path, monkeypatch):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), NoSocks) as no_socks:
        threading.Thread(target=no_socks.serve_forever, daemon=True).start()
        monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{no_socks.server_address[1]}")
        with pytest.raises(DatasetError, match="cannot be fetched through ALL_PROXY"):
            download(FILE, tmp_path, retry_wait_s=0)
        no_socks.shutdown()


@pytest.mark.parametrize("variables", ["dead", "unusable"])
def test_our_servers_are_asked_directly(dead_proxies, variables: str, monkeypatch):
    if variables == "unusable":
        monkeypatch.setenv("http_proxy", "nonsense://")
    with StubServer(entry("slow")) as stub, ServerClient(stub.host) as client:
        assert [each.name for each in client.implementations()] == ["slow"]


@pytest.mark.slow
def test_the_sweep_starts_and_loads_its_server_directly(dead_proxies, detbench, tmp_path: Path):
    sweep = ("run", "--implementations", "invalid", "--users", "1", "--duration", "1", "--warmup", "1")
    assert detbench(*sweep, "--max-images", "1") == 0


def test_locust_asks_its_server_directly(dead_proxies, data_dir: Path):
    with StubServer(entry("slow")) as stub:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", stub.host, "--headless", "-t", "2s"),
                *("--implementation", "slow", "--model-set", "single", "--data-dir", str(data_dir)),
            ],
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        assert stub.calls.count("/infer/slow") > 10


def test_reference_and_compare_ask_their_server_directly(dead_proxies, detbench, server: ServerProcess):
    asked = ("--host", server.host, "--max-images", "1")
    assert detbench("reference", *asked) == 0
    assert detbench("compare", *asked, "--implementations", "baseline") == 0
