"""Where implementations are measured: each in a new server process of our own, or all in one that a person names."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from detbench.api.client import ServerClient
from detbench.api.oip import OipClient
from detbench.api.protocol import Oip
from detbench.api.schemas import ModelSetStatus
from detbench.errors import DetbenchError, ServerError
from detbench.measure.progress import SweepProgress
from detbench.measure.server_process import Cluster, ServerProcess
from detbench.results.sweep import Memory


@dataclass(frozen=True)
class Server:
    """A server that answers, with nothing loaded when it is handed out unless it is a cluster.

    `process` is its process where it is our own, and `empty_mb` what that took of memory before anything was loaded,
    which nobody knows of a cluster.
    """

    client: ServerClient
    process: ServerProcess | None = None
    empty_mb: float | None = None

    def alive(self) -> bool:
        """Whether the server runs, as far as that is ours to know."""
        return self.process is None or self.process.alive()

    def reason(self, error: DetbenchError) -> str:
        """The error in words; with the end of its log where the server has ended."""
        if isinstance(error, ServerError) and self.process is not None and self.process.ended():
            return f"the server ended: {error}\n{self.process.log_tail()}"
        return str(error)

    def memory(self) -> Memory:
        """Its memory now, and the peaks since their last reset, as results keep them."""
        return memory_of(self.client, self.empty_mb)


@dataclass(frozen=True)
class OwnServers:
    """Starts a new server process each time that one is asked for.

    `create` makes the process, which is not started yet, from the file of its log, and what it is where it is a
    cluster; the logs are in `run_dir`.
    """

    create: Callable[[Path, Cluster | None], ServerProcess]
    run_dir: Path
    progress: SweepProgress

    host: ClassVar[None] = None

    @contextmanager
    def empty(self, name: str | None = None, cluster: Cluster | None = None) -> Iterator[Server]:
        """A server in which nothing is loaded, or a cluster with what it is for, ended after the block.

        Args:
            name: what it is for, and what its log is named after; None: to ask what there is.
            cluster: what it is, where it is one.

        Raises:
            ServerError: it does not start; or what the block raises, with the end of the log where the server ended.
        """
        self.progress.doing(f"starting a server for {name}" if name else "starting a server")
        with self.create(self.run_dir / (f"server-{name}.log" if name else "server.log"), cluster) as process:
            process.wait_ready()
            with ServerClient(process.host) as client:
                server = Server(client, process, None if cluster else memory_of(client, None).now_mb)
                try:
                    yield server
                except ServerError as error:
                    raise ServerError(server.reason(error), error.status) from error


@dataclass(frozen=True)
class ServerAt:
    """The detserver at `host`, which is not ours to start or end."""

    host: str

    @contextmanager
    def empty(self, _: str | None = None, __: Cluster | None = None) -> Iterator[Server]:
        """The server, after everything that it has loaded was unloaded; a cluster with what it serves.

        Raises:
            ServerError: it does not answer, or refuses.
        """
        with ServerClient(self.host) as client:
            if client.health().replicas is None:
                for status in client.implementations():
                    for model_set in status.loaded:
                        client.unload(status.name, model_set)
            yield Server(client)


@dataclass(frozen=True)
class OipServerAt:
    """The server of the Open Inference Protocol at `host`: what it serves stays as it is.

    `model_set` is what its models are said to run, `names` are those models; empty: all that are ready.
    """

    host: str
    protocol: Oip
    model_set: ModelSetStatus
    names: tuple[str, ...]

    @contextmanager
    def empty(self, _: str | None = None, __: Cluster | None = None) -> Iterator[Server]:
        """The server.

        Raises:
            ServerError: it does not answer, or is not ready.
        """
        with OipClient(self.host, self.protocol, self.model_set, self.names) as client:
            client.ready()
            yield Server(client)


Servers = OwnServers | ServerAt | OipServerAt


def memory_of(client: ServerClient, empty_mb: float | None) -> Memory:
    """Memory of the server that `client` calls, see `Memory`."""
    return Memory.model_validate(client.vram().model_dump(exclude={"device"}) | {"empty_mb": empty_mb})
