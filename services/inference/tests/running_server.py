"""A real detserver on a port of its own.

Its imports take six seconds of a core. They are made once, in a process that servers are then forked from; a test of
how a server starts or ends asks for a process of its own (`program=PROCESS`).
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Protocol
from unittest import mock

import httpx

PROCESS = ("-m", "detserver")

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["imported_server"])


class Process(Protocol):
    """What the tests ask of a server's process, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int) -> None: ...


@dataclass(frozen=True)
class RunningServer:
    """A detserver process; `log` is everything that it has printed."""

    url: str
    process: Process
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def infer(self, implementation: str, **request: object) -> httpx.Response:
        return httpx.post(f"{self.url}/infer/{implementation}", timeout=600, **request)  # type: ignore[arg-type]


def start(folder: Path, wait: bool, environment: dict[str, str], program: Sequence[str] = ()) -> RunningServer:
    """Start a server, forked unless `program` says what arguments of Python start it in a process of its own."""
    port = free_port()
    log_file = folder / f"server-{port}.log"
    ours = {"DETSERVER_PORT": str(port), "DETSERVER_WEIGHTS_DOWNLOAD": "false", "DETSERVER_DEADLINE_S": "600"}
    variables = os.environ | ours | environment
    process: Process
    if program:
        with log_file.open("wb") as log:
            process = subprocess.Popen([sys.executable, *program], stdout=log, stderr=subprocess.STDOUT, env=variables)
    else:
        process = _Forked(log_file, variables)
    server = RunningServer(f"http://127.0.0.1:{port}", process, log_file)
    path = "/ready" if wait else "/health"
    while True:
        try:
            if httpx.get(server.url + path, timeout=5).is_success:
                return server
        except httpx.HTTPError:
            pass
        if process.poll() is not None:
            raise AssertionError(f"the server ended:\n{server.log}")
        time.sleep(0.1)


def free_port() -> int:
    """A TCP port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def stop(server: RunningServer) -> None:
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)


class _Forked:
    """A server that was forked from the process with the imports."""

    def __init__(self, log_file: Path, variables: dict[str, str]) -> None:
        log_file.touch()
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        with mock.patch.dict(os.environ, PYTHONPATH=path):
            forkserver.ensure_running()
        self._process = _CONTEXT.Process(target=_serve, args=(log_file, variables))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("detserver", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _serve(log_file: Path, variables: dict[str, str]) -> None:
    log = os.open(log_file, os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["detserver"]
    from detserver.__main__ import main

    sys.exit(main())
