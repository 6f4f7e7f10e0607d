"""Processes of the load generator, forked from one that has its imports and stays as long as this process."""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

from detbench.errors import ServerError


class GeneratorProcess:
    """One process of the load generator: `python -m detbench.load.driver` with these arguments. A context manager.

    Attributes:
        pid: its process id.
        stdin, stdout: pipes, as text.

    Args:
        arguments: of its command line.
        errors: file that receives its standard error.

    Raises:
        ServerError: it cannot be started.
    """

    def __init__(self, arguments: Sequence[str], errors: IO[str]) -> None:
        (its_input, our_input), (our_output, its_output) = os.pipe(), os.pipe()
        try:
            self._server = _fork_server()
            self.pid = self._server.start(arguments, (its_input, its_output, errors.fileno()))
        finally:
            os.close(its_input)
            os.close(its_output)
        self.stdin, self.stdout = os.fdopen(our_input, "w"), os.fdopen(our_output)
        self._status: int | None = None

    def __enter__(self) -> "GeneratorProcess":
        return self

    def __exit__(self, *_: object) -> None:
        """End it, if it runs still."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            self.wait()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.stdout.close()

    def wait(self) -> int:
        """Its exit status when it has ended; that of a signal is negative."""
        if self._status is None:
            self._status = self._server.wait(self.pid)
        return self._status


class _ForkServer:
    """See `detbench.load.fork_server`."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "detbench.load.fork_server", str(theirs.fileno())]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        self._one_at_a_time = threading.Lock()
        atexit.register(self.end)

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._socket.close()
        self._process.wait()

    def start(self, arguments: Sequence[str], files: Sequence[int]) -> int:
        return self._ask({"argv": list(arguments), "cwd": os.getcwd(), "environ": dict(os.environ)}, files)  # noqa: PTH109

    def wait(self, pid: int) -> int:
        return self._ask({"wait": pid})

    def _ask(self, message: dict[str, object], files: Sequence[int] = ()) -> int:
        data = json.dumps(message).encode()
        with self._one_at_a_time:
            try:
                socket.send_fds(self._socket, [len(data).to_bytes(4)], files)
                self._socket.sendall(data)
                answer = self._socket.recv(4, socket.MSG_WAITALL)
            except OSError:
                answer = b""
        if len(answer) < 4:
            raise ServerError("the process that starts the load generator has ended")
        return int.from_bytes(answer, signed=True)


_running: _ForkServer | None = None


def _fork_server() -> _ForkServer:
    """That of this process; a new one where it has ended."""
    global _running
    if _running is None or not _running.alive():
        _running = _ForkServer()
    return _running
