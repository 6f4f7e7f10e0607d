"""Environment variables of the measuring side: an empty one is unset, a bad one is named."""

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from stub_server import StubServer, entry

from detbench.__main__ import build_parser, main
from detbench.api.client import ServerClient, base_url
from detbench.errors import DetbenchError, ServerError
from detbench.variables import forget_empty_variables, web_address

REPOSITORY = Path(__file__).parents[3]
PACKAGE = REPOSITORY / "services" / "bench" / "src" / "detbench"
READ_IN = [*PACKAGE.rglob("*.py"), *REPOSITORY.glob("compose*.yaml"), REPOSITORY / "services" / "bench" / "Dockerfile"]
VARIABLES = sorted(
    {
        name
        for path in READ_IN
        for name in re.findall(r"\b(?:DETBENCH|BENCHMARK|DETSERVER)_[A-Z_]*[A-Z]\b", path.read_text())
    }
)
COMMANDS = ("run", "compare", "reference", "report", "datasets")
LOCUSTFILE = PACKAGE / "load" / "locustfile.py"


def environment_with(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer(entry("baseline", model_sets=["mixed"])) as server:
        yield server


def test_all_variables_are_found():
    assert {"BENCHMARK_MAX_IMAGES", "BENCHMARK_METRICS_PORT", "DETBENCH_COCO_IMAGES_URL", "DETBENCH_REVISION"} <= set(
        VARIABLES
    )


@pytest.mark.parametrize("empty", ["", " \t"])
def test_options_are_the_same_whether_variables_are_empty_or_unset(empty: str, monkeypatch: pytest.MonkeyPatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    unset = [vars(build_parser().parse_args([command])) for command in COMMANDS]
    for name in VARIABLES:
        monkeypatch.setenv(name, empty)
    forget_empty_variables()
    assert [vars(build_parser().parse_args([command])) for command in COMMANDS] == unset
    assert not set(VARIABLES) & set(os.environ)


ENTRY_POINTS = {
    "detbench": ("detbench", "run", "--users", "1", "--duration", "1", "--warmup", "1", "--max-images", "1"),
    "locust": ("locust", "-f", LOCUSTFILE, "--headless", "-t", "2s"),
    "driver": (
        *("detbench.load.driver", "--implementation", "baseline", "--model-set", "mixed", "--dataset", "sample"),
        *("--data-dir", "data", "--max-images", "1", "--duration", "1"),
        *("--offered", '{"loop": "closed", "users": 1}'),
    ),
}


@pytest.mark.parametrize("entry_point", [pytest.param("detbench", marks=pytest.mark.slow), "locust", "driver"])
def test_every_entry_point_works_with_all_variables_empty(stub, tmp_path: Path, entry_point: str):
    ended = subprocess.run(
        [sys.executable, "-m", *ENTRY_POINTS[entry_point], "--host", stub.host],
        env=environment_with(**dict.fromkeys(VARIABLES, "")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert stub.calls.count("/infer/baseline") > 3
    assert (tmp_path / "data" / "sample").is_dir()


@pytest.mark.parametrize(
    ("command", "name", "value", "reason"),
    [
        ("compare", "BENCHMARK_MAX_IMAGES", "abc", "must be a whole number from 1"),
        ("run", "BENCHMARK_MAX_IMAGES", "-3", "must be a whole number from 1"),
        ("run", "BENCHMARK_METRICS_PORT", "abc", "must be a whole number from 0 to 65535"),
        ("reference", "BENCHMARK_HOST", "ftp://x", "is no base URL of a server"),
        ("datasets coco_val2017", "DETBENCH_COCO_IMAGES_URL", "x.org/val.zip", "must be a URL"),
        ("datasets roboflow_aquarium", "DETBENCH_AQUARIUM_URL", "abc", "must be a URL"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_variable(tmp_path: Path, command, name: str, value: str, reason: str):
    ended = subprocess.run(
        [sys.executable, "-m", "detbench", *command.split()],
        env=environment_with(**{name: value}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f"{name}={value}: " in line
    assert reason in line


def test_an_option_wins_over_a_bad_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BENCHMARK_MAX_IMAGES", "abc")
    assert build_parser().parse_args(["run", "--max-images", "5"]).max_images == 5


def test_a_bad_option_does_not_blame_a_variable(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("BENCHMARK_MAX_IMAGES", "7")
    with pytest.raises(SystemExit):
        main(["run", "--max-images", "abc"])
    assert capsys.readouterr().err == (
        "error: argument --max-images: must be a whole number from 1 (see detbench run --help)\n"
    )


def test_an_address_in_a_variable_is_of_the_web(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DETBENCH_AQUARIUM_URL", "https://x.org/a.zip")
    assert web_address("DETBENCH_AQUARIUM_URL") == "https://x.org/a.zip"
    monkeypatch.setenv("DETBENCH_AQUARIUM_URL", "file:///etc/passwd")
    with pytest.raises(DetbenchError, match="begins with http"):
        web_address("DETBENCH_AQUARIUM_URL")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("localhost:8000", "http://localhost:8000"),
        (" http://gpu.example ", "http://gpu.example"),
        ("HTTPS://gpu.example//", "https://gpu.example"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("https://gpu.example/behind/a/prefix/", "https://gpu.example/behind/a/prefix"),
    ],
)
def test_a_base_url_is_taken_as_it_is_meant(written: str, meant: str):
    assert base_url(written) == meant


@pytest.mark.parametrize("bad", ["", "http://", "ftp://x", "http://x:99999", "http://x:port", "http://x/?a=b"])
def test_what_is_no_base_url_is_told(bad: str):
    with pytest.raises(ServerError, match="such as http://localhost:8000"):
        base_url(bad)


def test_a_server_that_is_no_detserver_is_told(tmp_path: Path):
    (tmp_path / "health").write_text("<html>")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with ServerClient(f"127.0.0.1:{server.server_port}") as client:
            with pytest.raises(ServerError, match="is no detserver"):
                client.health()
    finally:
        server.shutdown()
