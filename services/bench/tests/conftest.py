"""What the tests of detbench share: a real server with one small model set, and a data folder."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from file_server import FileServer, file_server
from PIL import Image

from detbench.__main__ import main
from detbench.datasets import Dataset, fetch, open_dataset
from detbench.host import CpuShares, CpuWatch
from detbench.measure.server_process import ServerProcess

# One small D0 instead of D0, D1 and D2: the same code in a twentieth of the time.
MODEL_SETS = """
[[model_sets.single.models]]
architecture = "tf_efficientdet_d0"
num_classes = 90
image_size = 256
"""


@pytest.fixture(autouse=True)
def host_that_takes_no_cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no verdict depend on what the host of this virtual machine does meanwhile; slow tests measure, and ask it."""
    if request.node.get_closest_marker("slow") or request.path.name == "test_host.py":
        return
    shares = CpuWatch.shares

    def without_steal(watch: CpuWatch) -> CpuShares | None:
        found = shares(watch)
        return found and replace(found, steal=0.0)

    monkeypatch.setattr(CpuWatch, "shares", without_steal)


@pytest.fixture(scope="session")
def data_dir(session_dir: Path) -> Path:
    """A data folder of the session, so that random weights are calibrated once."""
    fetch("sample", session_dir / "data")
    return session_dir / "data"


@pytest.fixture
def files() -> Iterator[FileServer]:
    """A server of files in the role of the internet."""
    with file_server() as running:
        yield running


@pytest.fixture
def photo_dir(tmp_path: Path) -> Path:
    """A folder with a photo so small that sending it takes no time."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "small.png")
    return folder


@pytest.fixture(scope="session")
def settings(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of the servers in these tests."""
    model_sets = tmp_path_factory.mktemp("settings") / "model_sets.toml"
    model_sets.write_text(MODEL_SETS)
    return {
        "DETSERVER_DATA_DIR": str(data_dir),
        "DETSERVER_MODEL_SETS_FILE": str(model_sets),
        "DETSERVER_DEFAULT_MODEL_SET": "single",
        "DETSERVER_WEIGHTS_DOWNLOAD": "false",
        "DETSERVER_TORCH_THREADS": "1",
    }


@pytest.fixture(scope="session")
def server(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with baseline and invalid of the set `single`."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "server.log", settings) as process:
        process.wait_ready()
        yield process


@pytest.fixture(scope="session")
def sample(data_dir: Path) -> Dataset:
    """The photographs of the dataset `sample`."""
    return open_dataset("sample", data_dir)


@pytest.fixture
def detbench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, str], data_dir: Path):
    """Call the command line in a folder of its own, with the small model set; returns the exit status."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BENCHMARK_MODEL_SET", "single")
    monkeypatch.setenv("BENCHMARK_DATA_DIR", str(data_dir))
    monkeypatch.setenv("BENCHMARK_OUTPUTS_DIR", str(tmp_path / "outputs"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main([str(argument) for argument in arguments])
