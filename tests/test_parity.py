"""Implementations that claim to be exact, by the public comparison, against a real server."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from detbench.__main__ import main
from detbench.datasets import fetch
from detbench.measure.server_process import ServerProcess

# `folded` is `channels-last` and more, `fused` on a CPU is `openvino`.
IMPLEMENTATIONS = {
    "mixed": ["postprocess", "folded", "compiled", "fused"],
    "uniform": ["folded", "vmap", "grouped", "fused"],
}
ONE_IMAGE_AT_A_TIME = {"fused"}  # on a CPU


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fetch("sample", folder)
    return folder


@pytest.fixture(scope="module")
def server(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {
        "DETSERVER_DATA_DIR": str(data_dir),
        "DETSERVER_WEIGHTS_DOWNLOAD": "false",
        "DETSERVER_DEVICE": "cpu",
        "DETSERVER_PRELOAD": "none",
    }
    with ServerProcess(tmp_path_factory.mktemp("server") / "server.log", settings) as process:
        process.wait_ready()
        yield process


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model_set", IMPLEMENTATIONS)
def test_what_claims_to_be_exact_is(model_set: str, server: ServerProcess, data_dir: Path, tmp_path: Path, capsys):
    listed = {each["name"]: each for each in httpx.get(f"{server.host}/implementations").json()}
    without_compiler = {"compiled"} if listed["compiled"]["unavailable"] else set()
    names = [name for name in IMPLEMENTATIONS[model_set] if name not in without_compiler]
    common = ["--host", server.host, "--model-set", model_set, "--data-dir", data_dir, "--outputs-dir", tmp_path]
    assert _detbench("reference", *common, "--max-images", 4) == 0
    for concurrency, images in ((1, 2), (4, 4)):
        figures = tmp_path / f"{concurrency}.json"
        these = ["--max-images", images, "--concurrency", concurrency, "--json", figures]
        status = _detbench("compare", "--implementations", *names, *common, *these)
        assert status == 0, capsys.readouterr().out
        found = {each["implementation"]: each for each in json.loads(figures.read_text())}
        assert list(found) == names
        for name, each in found.items():
            assert each["gate"]["passed"], name
            assert each["overall"]["reference_detections"] >= 3 * images * 3, name
            if name not in ONE_IMAGE_AT_A_TIME:
                assert max(map(int, each["batch_sizes"])) > 1 or concurrency == 1, name


def _detbench(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])
