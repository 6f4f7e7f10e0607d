"""What holds for the tests of all packages."""

import signal
import socketserver
import sys
from pathlib import Path
from typing import Any

import pytest

# A shell that starts the tests in the background lets them ignore it, and all that they start, which then never ends.
signal.signal(signal.SIGINT, signal.default_int_handler)


_print_error = socketserver.BaseServer.handle_error


def _print_unless_gone(server: socketserver.BaseServer, request: Any, client: Any) -> None:
    """A client that goes away is no news, and would stand in the middle of what a later test prints."""
    if not isinstance(sys.exception(), ConnectionError):
        _print_error(server, request, client)


socketserver.BaseServer.handle_error = _print_unless_gone  # type: ignore[method-assign]


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook, too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a server, or networks, run in one process, so that these are made once; slow ones come first."""
    items.sort(key=_when)
    for item in items:
        if item.get_closest_marker("xdist_group"):  # with a second one it would be in a third group, the union of them
            continue
        package = Path(item.path).relative_to(Path(__file__).parent).parts[1]
        for shared in ("server", "small"):
            if shared in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(f"{shared} of {package}"))
                break


def _when(item: pytest.Item) -> tuple[bool, float]:
    """Slow ones first, and of these first what may take longest, so that no process works on alone at the end."""
    limit = item.get_closest_marker("timeout")
    return item.get_closest_marker("slow") is None, -(limit.args[0] if limit else 0)


@pytest.fixture(scope="session")
def session_dir(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of the whole session, with several processes too, for what is made once and only read then."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "session"
    folder.mkdir(exist_ok=True)
    return folder
