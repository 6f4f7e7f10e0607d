"""A detserver of our own, for a sweep on a machine where none runs: started, watched and ended here."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import httpx

from detbench.errors import ServerError

_TAIL_LINES = 15

# A server whose device has failed ends after 15 s at the latest.
_ENDS_WITHIN_S = 20.0


# Until a server is ready, and until it ends. The replicas of a cluster load before it is ready, which may be for the
# first time, and drain before it ends.
_STARTS_WITHIN_S, _STOPS_WITHIN_S = 600.0, 10.0
_CLUSTER_STARTS_WITHIN_S, _CLUSTER_STOPS_WITHIN_S = 1800.0, 90.0


class Cluster(NamedTuple):
    """What a server serves that is a cluster: `preload`, such as "fastest@mixed", in so many replicas."""

    preload: str
    replicas: int


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """`python -m detserver` on a free port of the loopback interface, with its output in a file.

    A context manager: started on entry, ended on exit.

    Args:
        log: file that receives stdout and stderr, after what an earlier server has left there.
        environment: settings of the server (`DETSERVER_*`), on top of this process's environment.
        cluster: what it serves, where it is to be a cluster.
    """

    def __init__(self, log: Path, environment: Mapping[str, str] | None = None, cluster: Cluster | None = None) -> None:
        self.log = log
        self.host = ""
        self._environment = dict(environment or {})
        if cluster:
            self._environment |= {
                "DETSERVER_PRELOAD": cluster.preload,
                "DETSERVER_REPLICAS": str(cluster.replicas),
            }
        self._starts_within_s = _CLUSTER_STARTS_WITHIN_S if cluster else _STARTS_WITHIN_S
        self._stops_within_s = _CLUSTER_STOPS_WITHIN_S if cluster else _STOPS_WITHIN_S
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the server; returns at once, see `wait_ready`."""
        port = free_port()
        self.host = f"http://127.0.0.1:{port}"
        environment = os.environ | {"DETSERVER_HOST": "127.0.0.1", "DETSERVER_PORT": str(port)} | self._environment
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "detserver"], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        return self

    def __exit__(self, *_: object) -> None:
        """End the process: politely, and where that takes too long by force."""
        self._running.terminate()
        try:
            self._running.wait(self._stops_within_s)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        return self._running.pid

    @property
    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise ServerError("the server was not started")
        return self._process

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def ended(self) -> bool:
        """Whether the process has ended. One that says that it has failed is about to, and is waited for."""
        if self.alive():
            try:
                failed = bool(httpx.get(f"{self.host}/ready", timeout=5.0, trust_env=False).json().get("failed"))
            except (httpx.HTTPError, ValueError):
                failed = False
            if failed:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._running.wait(_ENDS_WITHIN_S)
        return not self.alive()

    def wait_ready(self) -> None:
        """Wait until `GET /ready` answers 200.

        Raises:
            ServerError: the process ended, said that it cannot become ready, or takes too long.
        """
        start = time.monotonic()
        while time.monotonic() - start < self._starts_within_s:
            if not self.alive():
                raise ServerError(f"the server ended while starting:\n{self.log_tail()}")
            try:
                answer = httpx.get(f"{self.host}/ready", timeout=5.0, trust_env=False)  # no proxy that it names
                if answer.is_success:
                    return
                if answer.json().get("failed"):
                    raise ServerError(f"the server cannot become ready: {answer.json()['detail']}")
            except (httpx.HTTPError, ValueError):
                pass  # not listening yet, or a cluster whose replicas do not: what its proxy says is no JSON
            time.sleep(0.5)
        raise ServerError(f"the server was not ready after {self._starts_within_s:.0f} s:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of the log, with the exit status when the process has ended."""
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if self.log.exists() else []
        status = None if self._process is None else self._process.poll()
        ended = [] if status is None else [f"(exit status {status}; the whole log: {self.log})"]
        return "\n".join([*lines, *ended])
