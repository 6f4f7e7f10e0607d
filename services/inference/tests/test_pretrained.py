"""Pretrained weights from a local server in the role of the internet, and networks that are dead in every way."""

import hashlib
import http.server
import io
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from effdet.config.model_config import efficientdet_model_param_dict
from starlette.testclient import TestClient
from weights_store import D0, D1, SEVEN, store

from detserver.errors import WeightsRefused
from detserver.http.routes import create_app
from detserver.models import download as downloading
from detserver.models.configuration import published_weights
from detserver.models.download import DownloadFailed, Unreachable, download
from detserver.models.model_sets import ModelSpec, create_model
from detserver.settings import Settings


class Mirror:
    """A server of effdet's files; `cut` breaks the first answer off half way, `missing` names what it has not."""

    def __init__(self) -> None:
        self.content = b""
        self.cut = False
        self.missing = ""
        self.asked: list[str] = []
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                if mirror.missing and mirror.missing in self.path:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(mirror.content)))
                self.end_headers()
                self.wfile.write(mirror.content[: len(mirror.content) // 2] if mirror.cut else mirror.content)
                mirror.cut = False

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    running = Mirror()
    yield running
    running.server.shutdown()


@pytest.fixture(scope="module")
def d0_file() -> bytes:
    """A checkpoint of D0 as effdet initialises it."""
    buffer = io.BytesIO()
    torch.save(create_model(D0).state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, d0_file: bytes, mirror: Mirror) -> Iterator[Mirror]:
    """The mirror has effdet's files of D0 and D1, whose names end with their checksum as effdet's names do.

    What it has is D0's weights, so that D1 would be refused if it got them.
    """
    mirror.content = d0_file
    checksum = hashlib.sha256(mirror.content).hexdigest()[:8]
    for name in ("tf_efficientdet_d0", "tf_efficientdet_d1"):
        url = f"https://nowhere.invalid/{name}-{checksum}.pth"
        monkeypatch.setitem(efficientdet_model_param_dict[name], "url", url)
    published_weights.cache_clear()
    yield mirror
    published_weights.cache_clear()


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights that take no time: where they come from is asked here, not what they are."""
    monkeypatch.setattr(
        "detserver.models.calibrate.calibrated_state_dict", lambda spec, _: create_model(spec).state_dict()
    )


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_pretrained_weights_are_downloaded_once(published: Mirror, tmp_path: Path):
    found = store(tmp_path, allow_download=True, mirror=published.url).get(D0)
    assert found.source == "pretrained"
    assert store(tmp_path, allow_download=True, mirror=published.url).get(D0).fingerprint == found.fingerprint
    assert store(tmp_path, allow_download=False).get(D0).source == "pretrained"
    assert len(published.asked) == 1


def test_a_download_with_another_checksum_is_refused_and_deleted(published: Mirror, tmp_path: Path):
    published.content = published.content[:-1] + b"x"
    with pytest.raises(WeightsRefused, match="SHA-256"):
        store(tmp_path, allow_download=True, mirror=published.url).get(D0)
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_broken_download_leaves_nothing_and_is_made_anew(mirror: Mirror, tmp_path: Path):
    mirror.content = bytes(range(256)) * 50
    mirror.cut = True
    with pytest.raises(DownloadFailed):
        download(f"{mirror.url}/file", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    download(f"{mirror.url}/file", tmp_path / "file", hashlib.sha256(mirror.content).hexdigest()[:8])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == mirror.content


def test_one_file_that_is_not_there_is_told_and_the_next_is_tried(
    published: Mirror, tmp_path: Path, calibrated: None, caplog: pytest.LogCaptureFixture
):
    published.missing = "tf_efficientdet_d1"
    found = store(tmp_path, allow_download=True, mirror=f"{published.url}/")
    assert [found.get(spec).source for spec in (D1, D0)] == ["random", "pretrained"]
    (warning,) = warnings_of(caplog)
    assert "tf_efficientdet_d1" in warning
    assert "404" in warning
    assert "\n" not in warning


def test_an_empty_mirror_is_effdets_own_server(published: Mirror, tmp_path: Path, calibrated: None, monkeypatch):
    asked = []

    def remember(url: str, *_: object, **__: object) -> None:
        asked.append(url)
        raise Unreachable("nowhere")

    monkeypatch.setattr("detserver.models.download.download", remember)
    store(tmp_path, allow_download=True, mirror="").get(D0)
    assert asked[0].startswith("https://nowhere.invalid/tf_efficientdet_d0-")


@pytest.mark.parametrize(
    ("changed", "source"),
    [
        ((), "pretrained"),
        ((("max_det_per_image", 20),), "pretrained"),
        ((("image_size", (256, 384)),), "pretrained"),
        ((("anchor_scale", 3.0),), "random"),
    ],
)
def test_pretrained_weights_go_only_with_the_configuration_that_they_were_trained_with(
    published: Mirror, tmp_path: Path, calibrated: None, changed: tuple, source: str
):
    spec = ModelSpec("tf_efficientdet_d0", "tf_efficientdet_d0", 90, overrides=changed)
    assert store(tmp_path, allow_download=True, mirror=published.url).get(spec).source == source


def test_only_models_with_the_pretrained_classes_are_downloaded(published: Mirror, tmp_path: Path, calibrated: None):
    assert store(tmp_path, allow_download=True, mirror=published.url).get(SEVEN).source == "random"
    assert published.asked == []


def test_a_server_that_downloads_says_pretrained(published: Mirror, tmp_path: Path):
    """In this process, because effdet's own file, which only its checksum's file can stand for, cannot be had here."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model_sets.toml").write_text(
        '[[model_sets.own.models]]\narchitecture = "tf_efficientdet_d0"\nnum_classes = 90'
    )
    settings = Settings(data_dir=tmp_path, weights_url=published.url, default_model_set="own", preload=["baseline"])
    with TestClient(create_app(settings)) as client:
        while client.get("/ready").status_code == 503:
            time.sleep(0.1)
        sets = {each["name"]: each["models"] for each in client.get("/health").json()["model_sets"]}
        assert [model["source"] for model in sets["own"]] == ["pretrained"]
        assert 'source="pretrained"' in client.get("/metrics").text
    assert len(published.asked) == 1


@pytest.fixture
def refused() -> Iterator[str]:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"  # bound and not listening


@pytest.fixture
def full_backlog() -> Iterator[str]:
    """Connections that are neither taken nor refused: the kernel drops their first packet."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = []
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        for each in waiting:
            each.close()


@pytest.fixture
def accepted_and_never_answered() -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def name_that_hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    release, resolve = threading.Event(), socket.getaddrinfo

    def hang(host: str | bytes | None, *arguments: object, **options: object) -> list:
        if host in ("weights.invalid", b"weights.invalid"):
            release.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield "http://weights.invalid"
    release.set()


@pytest.fixture
def name_that_is_unknown(monkeypatch: pytest.MonkeyPatch) -> str:
    def fail(*_: object, **__: object) -> list:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    return "http://weights.invalid"


@pytest.mark.parametrize(
    "network",
    [
        *("refused", "full_backlog", "accepted_and_never_answered", "name_that_hangs", "name_that_is_unknown"),
        *("http://127.0.0.1:1", "socks5h://127.0.0.1:1", "socks9://proxy:1080", "http://[::1"),  # proxies
    ],
)
def test_a_dead_network_costs_ten_seconds_once_and_one_warning(
    request: pytest.FixtureRequest,
    published: Mirror,
    tmp_path: Path,
    calibrated: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    network: str,
):
    assert downloading.ANSWER_WITHIN_S < 10
    monkeypatch.setattr(downloading, "ANSWER_WITHIN_S", 1.0)
    tried: list[str] = []
    monkeypatch.setattr("detserver.models.download.download", counted(tried))
    if "://" in network:
        monkeypatch.setenv("all_proxy", network)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
    mirror = "http://weights.invalid" if "://" in network else request.getfixturevalue(network)
    offline = store(tmp_path, allow_download=True, mirror=mirror)
    assert [offline.get(spec).source for spec in (D0, D1)] == ["random", "random"]
    assert len(tried) == 1
    # Far less than the timeouts of a resolver or a connection, far more than a loaded machine needs for one second.
    assert float(tried[0]) < 20
    (warning,) = warnings_of(caplog)
    assert "no download of pretrained weights" in warning
    assert "\n" not in warning


def counted(tried: list[str]) -> Callable[..., None]:
    """`download` that writes down how long each call took."""

    def call(*arguments: object, **options: object) -> None:
        start = time.monotonic()
        try:
            download(*arguments, **options)  # type: ignore[arg-type]
        finally:
            tried.append(f"{time.monotonic() - start}")

    return call


def test_a_download_that_stalls_is_given_up_and_one_that_goes_on_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(downloading, "ANSWER_WITHIN_S", 2.0)
    monkeypatch.setattr(downloading, "_STALL_S", 2.0)
    release = threading.Event()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "8")
            self.end_headers()
            for index in range(8):
                if self.path == "/stalls" and index == 4:
                    release.wait(60)
                self.wfile.write(b"x")
                time.sleep(0.4)  # in all longer than a stall, and than the head may take

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    download(f"{url}/goes-on", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"x" * 8
    with pytest.raises(Unreachable, match="stalled for 2 s"):
        download(f"{url}/stalls", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    release.set()
    server.shutdown()
