"""What holds for the tests of all packages."""

import signal
from pathlib import Path

import pytest

# A shell that starts the tests in the background lets them ignore it, and all that they start, which then never ends.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook, too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a server, or networks, run in one process, so that these are made once."""
    for item in items:
        package = Path(item.path).relative_to(Path(__file__).parent).parts[1]
        for shared in {"server", "small"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.xdist_group(f"{shared} of {package}"))


@pytest.fixture(scope="session")
def session_dir(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of the whole session, with several processes too, for what is made once and only read then."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "session"
    folder.mkdir(exist_ok=True)
    return folder
