"""Servers that stay while others are measured, so that rounds can be many and short."""

from contextlib import ExitStack
from typing import Self

from detbench.api.schemas import ImplementationStatus
from detbench.host import available_mb
from detbench.measure.selection import Deployment
from detbench.measure.servers import Server
from detbench.measure.session import Session
from detbench.results.sweep import ImplementationInfo

# What is left free of the machine's memory, beside room for a server half as large again as the largest so far.
_LEFT_FREE_MB = 2000.0
_ROOM = 1.5


class KeptServers:
    """A server for each implementation, as many as memory holds; one that is idle takes no time. A context manager.

    Args:
        session: starts the servers.
        keeps: whether they stay; where not, each is ended by `release`, as on a GPU, whose memory they would share.
    """

    def __init__(self, session: Session, keeps: bool) -> None:
        self._session = session
        self._keeps = keeps
        self._kept: dict[str, tuple[ExitStack, Server, ImplementationInfo]] = {}  # the longest idle one first
        self._largest_mb = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()

    def of(self, status: ImplementationStatus) -> tuple[Server, ImplementationInfo]:
        """The server in which `status` alone is loaded, and what it is and took; started where there is none.

        Raises:
            ServerError: it does not start, or refuses to load.
        """
        if (kept := self._kept.pop(status.name, None)) is None:
            self._make_room()
            with ExitStack() as stack:
                server, info = stack.enter_context(self._session.alone(Deployment(status)))
                kept = stack.pop_all(), server, info
        self._kept[status.name] = kept
        return kept[1:]

    def release(self, name: str) -> None:
        """Say that the server of this name is idle now; one that has ended is forgotten."""
        _, server, _ = self._kept[name]
        if not self._keeps or not server.alive():
            self.end(name)
        else:
            self._largest_mb = max(self._largest_mb, server.memory().peak_mb or 0.0)

    def end_all(self) -> None:
        """End every server; the next one of each implementation is a new one."""
        for name in list(self._kept):
            self.end(name)

    def end(self, name: str) -> None:
        """End the server of this name."""
        stack, _, _ = self._kept.pop(name)
        stack.close()

    def _make_room(self) -> None:
        while self._kept and (free_mb := available_mb()) is not None:
            if free_mb > _LEFT_FREE_MB + _ROOM * self._largest_mb:
                return
            self.end(next(iter(self._kept)))
