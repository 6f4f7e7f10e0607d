"""What the tests of the server share: photographs, and real servers on ports of their own."""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from running_server import RunningServer, start, stop

from detserver.models.weights import WeightsStore
from detserver.settings import Settings

REPOSITORY = Path(__file__).parents[3]
TESTDATA = REPOSITORY.parent / "shared" / "testdata"

StartServer = Callable[..., RunningServer]

# Two small ones in the place of D0, D1 and D2: the same code in a tenth of the time. No weights are calibrated for them
# alone, because other tests have them, too.
MODEL_SETS = """
[[model_sets.quick.models]]
architecture = "tf_efficientdet_d0"
num_classes = 90
image_size = 256

[[model_sets.quick.models]]
architecture = "tf_efficientdet_d1"
num_classes = 7
image_size = 128
"""


@pytest.fixture(scope="session")
def data_dir(session_dir: Path) -> Path:
    """A data folder of the session, so that random weights are calibrated once."""
    return session_dir / "data"


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> dict[str, str]:
    """Settings of the servers in these tests: a model set `quick` beside the built-in ones, which requests get."""
    file = tmp_path_factory.mktemp("settings") / "model_sets.toml"
    file.write_text(MODEL_SETS)
    return {
        "DETSERVER_DATA_DIR": str(data_dir),
        "DETSERVER_MODEL_SETS_FILE": str(file),
        "DETSERVER_DEFAULT_MODEL_SET": "quick",
    }


@pytest.fixture
def start_server(tmp_path: Path, quick: dict[str, str]) -> Iterator[StartServer]:
    """Start servers with settings given as keyword arguments (`preload="invalid"`); ended after the test."""
    servers: list[RunningServer] = []

    def start_one(wait: bool = True, program: Sequence[str] = (), **settings: str) -> RunningServer:
        environment = {f"DETSERVER_{name.upper()}": value for name, value in settings.items()}
        servers.append(start(tmp_path, wait, quick | environment, program))
        return servers[-1]

    yield start_one
    for server in servers:
        stop(server)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, quick: dict[str, str]) -> Iterator[RunningServer]:
    """A server with `baseline` and `invalid` of `quick`, for all tests that only ask."""
    running = start(tmp_path_factory.mktemp("server"), True, quick)
    yield running
    stop(running)


@pytest.fixture(scope="session")
def store(data_dir: Path) -> WeightsStore:
    """The random weights that the servers of the session have."""
    return WeightsStore(data_dir / "weights", data_dir / "cache", Settings().seed, allow_download=False)


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """Photographs without restrictions, from inside the package scikit-image."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    return [folder / name for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")]


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of test photographs beside the checkout, where there is one."""
    if not TESTDATA.is_dir():
        pytest.skip(f"no test photographs in {TESTDATA}")
    return TESTDATA
