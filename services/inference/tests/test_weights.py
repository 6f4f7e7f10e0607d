"""Where weights come from, in which order, and what is refused."""

import hashlib
import http.server
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from effdet.config.model_config import efficientdet_model_param_dict
from safetensors.torch import save_file
from starlette.testclient import TestClient

from detserver.errors import WeightsRefused
from detserver.http.routes import create_app
from detserver.models import download as downloading
from detserver.models.configuration import published_weights
from detserver.models.download import DownloadFailed, Unreachable, download
from detserver.models.model_sets import BUILT_IN, ModelSpec, create_model
from detserver.models.weights import WeightsStore, fingerprint
from detserver.settings import Settings

D0, D1 = BUILT_IN[0].models[:2]
SEVEN = ModelSpec("fish", "tf_efficientdet_d0", 7)


@pytest.fixture(scope="module")
def weights_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """d0.pth and d0.safetensors with equal weights, and seven.pth of a head of 7 classes."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    state = create_model(D0).state_dict()
    torch.save(state, folder / "d0.pth")
    save_file(state, folder / "d0.safetensors")
    torch.save(create_model(SEVEN).state_dict(), folder / "seven.pth")
    return folder


def store(data: Path, **options: object) -> WeightsStore:
    return WeightsStore(data / "weights", data / "cache", **({"seed": 0, "allow_download": False} | options))


def place(source: Path, data: Path, name: str) -> None:
    (data / "weights").mkdir(parents=True, exist_ok=True)
    (data / "weights" / name).write_bytes(source.read_bytes())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_file_comes_first_and_is_what_the_model_holds(weights_files: Path, tmp_path: Path, suffix: str):
    place(weights_files / f"d0{suffix}", tmp_path, f"tf_efficientdet_d0{suffix}")
    local = store(tmp_path)
    found = local.get(D0)
    assert found.source == "local"
    expected = torch.load(weights_files / "d0.pth", weights_only=True)
    assert found.fingerprint == fingerprint(expected)
    for name, value in local.model(D0).state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_checkpoint_of_training_is_read_by_its_ema_weights(weights_files: Path, tmp_path: Path):
    expected = torch.load(weights_files / "d0.pth", weights_only=True)
    other = {name: torch.zeros_like(value) for name, value in expected.items()}
    (tmp_path / "weights").mkdir()
    checkpoint = {"epoch": 7, "state_dict": other, "state_dict_ema": {f"module.{k}": v for k, v in expected.items()}}
    torch.save(checkpoint, tmp_path / "weights" / "tf_efficientdet_d0.pth")
    assert store(tmp_path).get(D0).fingerprint == fingerprint(expected)


def test_a_file_of_another_model_is_refused_with_what_differs(weights_files: Path, tmp_path: Path):
    place(weights_files / "seven.pth", tmp_path, "tf_efficientdet_d0.pth")
    with pytest.raises(WeightsRefused) as refused:
        store(tmp_path).get(D0)
    message = str(refused.value)
    assert "tf_efficientdet_d0 with 90 classes" in message
    assert "the file looks like num_classes = 7, and the configuration says 90" in message
    assert "take the file away" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04cos\nsystem\n."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: bytes, suffix: str):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"tf_efficientdet_d0{suffix}").write_bytes(content)
    with pytest.raises(WeightsRefused, match="cannot be read as weights of tf_efficientdet_d0"):
        store(tmp_path).get(D0)


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "run",))

    (tmp_path / "weights").mkdir()
    torch.save({"state_dict": Evil()}, tmp_path / "weights" / "tf_efficientdet_d0.pth")
    with pytest.raises(WeightsRefused):
        store(tmp_path).get(D0)
    assert not (tmp_path / "run").exists()


def test_a_nan_in_a_file_is_refused(weights_files: Path, tmp_path: Path):
    state = torch.load(weights_files / "d0.pth", weights_only=True)
    state["box_net.predict.conv_pw.bias"][3] = float("nan")
    (tmp_path / "weights").mkdir()
    torch.save(state, tmp_path / "weights" / "tf_efficientdet_d0.pth")
    with pytest.raises(WeightsRefused, match=r"box_net.predict.conv_pw.bias .* NaN"):
        store(tmp_path).get(D0)


def test_a_file_that_a_model_set_names_must_be_there(tmp_path: Path):
    spec = ModelSpec("fish", "tf_efficientdet_d0", 7, weights_file=tmp_path / "fish.pth")
    with pytest.raises(WeightsRefused, match="there is no weights file"):
        store(tmp_path).get(spec)


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


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, weights_files: Path, mirror: Mirror) -> Iterator[Mirror]:
    """The mirror has effdet's files of D0 and D1, whose names end with their checksum as effdet's names do.

    What it has is D0's weights, so that D1 would be refused if it got them.
    """
    mirror.content = (weights_files / "d0.pth").read_bytes()
    checksum = hashlib.sha256(mirror.content).hexdigest()[:8]
    for name in ("tf_efficientdet_d0", "tf_efficientdet_d1"):
        url = f"https://nowhere.invalid/{name}-{checksum}.pth"
        monkeypatch.setitem(efficientdet_model_param_dict[name], "url", url)
    published_weights.cache_clear()
    yield mirror
    published_weights.cache_clear()


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

    monkeypatch.setattr("detserver.models.weights.download", remember)
    store(tmp_path, allow_download=True, mirror="").get(D0)
    assert asked[0].startswith("https://nowhere.invalid/tf_efficientdet_d0-")


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights that take no time: where they come from is asked here, not what they are."""
    monkeypatch.setattr(
        "detserver.models.calibrate.calibrated_state_dict", lambda spec, _: create_model(spec).state_dict()
    )


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


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
    monkeypatch.setattr("detserver.models.weights.download", counted(tried))
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


def test_random_weights_are_calibrated_once_and_kept(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    found = store(data_dir).get(D0)
    assert found.source == "random"

    def never(*_: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr("detserver.models.calibrate.calibrated_state_dict", never)
    assert store(data_dir).get(D0).fingerprint == found.fingerprint


def test_a_model_that_nobody_can_draw_weights_for_says_so(tmp_path: Path):
    with pytest.raises(WeightsRefused, match="efficientdet_es has no calibrated random weights"):
        store(tmp_path).get(ModelSpec("small", "efficientdet_es", 90))


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


def test_the_server_answers_from_the_local_file_and_says_so(start_server, weights_files: Path, tmp_path: Path, photos):
    place(weights_files / "d0.safetensors", tmp_path / "data", "tf_efficientdet_d0.safetensors")
    (tmp_path / "sets.toml").write_text(
        '[[model_sets.own.models]]\narchitecture = "tf_efficientdet_d0"\nnum_classes = 90'
    )
    server = start_server(
        data_dir=str(tmp_path / "data"),
        model_sets_file=str(tmp_path / "sets.toml"),
        default_model_set="own",
        preload="baseline",
    )
    model = httpx.get(f"{server.url}/model-sets/own").json()["models"][0]
    assert model["source"] == "local"
    assert 'source="local"' in httpx.get(f"{server.url}/metrics").text
    # effdet's own initialisation: all scores near 0.01, unlike the calibrated ones.
    scores = server.infer("baseline", files={"file": photos[0].read_bytes()}).json()["detections"][0]["scores"]
    assert max(scores) < 0.1


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


def test_the_server_refuses_a_file_of_another_model(start_server, weights_files: Path, tmp_path: Path, photos):
    place(weights_files / "seven.pth", tmp_path / "data", "tf_efficientdet_d0.pth")
    server = start_server(wait=False, data_dir=str(tmp_path / "data"), preload="invalid")
    while not httpx.get(f"{server.url}/ready").is_success:
        pass
    answer = server.infer("baseline", files={"file": photos[0].read_bytes()})
    assert answer.status_code == 409
    assert "tf_efficientdet_d0 with 90 classes" in answer.json()["detail"]
    assert "Traceback" not in server.log
