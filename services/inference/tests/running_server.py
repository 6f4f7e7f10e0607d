"""A real detserver on a port of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True)
class RunningServer:
    """A detserver process; `log` is everything that it has printed."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def infer(self, implementation: str, **request: object) -> httpx.Response:
        return httpx.post(f"{self.url}/infer/{implementation}", timeout=120, **request)  # type: ignore[arg-type]


def start(
    folder: Path, wait: bool, environment: dict[str, str], program: Sequence[str] = ("-m", "detserver")
) -> RunningServer:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_file = folder / f"server-{port}.log"
    settings = {"DETSERVER_PORT": str(port), "DETSERVER_WEIGHTS_DOWNLOAD": "false", **environment}
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *program], stdout=log, stderr=subprocess.STDOUT, env=os.environ | settings
        )
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
        time.sleep(0.2)


def stop(server: RunningServer) -> None:
    server.process.terminate()
    server.process.wait(30)
