"""A process that has the load generator's imports, and forks a process of it for each load: they take three seconds.

    python -m detbench.load.fork_server FD

FD is a stream socket. Each message is its length in four bytes, then JSON: `{"argv", "cwd", "environ"}`, with the new
process's standard input, output and error as file descriptors beside the length, is answered with its process id; and
`{"wait": process id}` with its exit status when it has ended. It ends when the socket is closed.
"""

from detbench.load import driver  # isort: skip (it patches the standard library before anything else is imported)

import json
import os
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

import gevent
from gevent.monkey import get_original

from detbench.variables import forget_empty_variables

# Those of gevent would run its event loop here, which a fork cannot take along; its `close` waits for that loop.
_socket = get_original("socket", "socket")
_close, _fork, _waitpid = (get_original("os", name) for name in ("close", "fork", "waitpid"))


def serve(requests: Any) -> None:
    """Answer messages until the other side closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; who started this one ends it
    while header := _received(requests):
        length, files = header
        message = json.loads(_exactly(requests, length))
        if "wait" in message:
            _, status = _waitpid(message["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif (answer := _fork()) == 0:
            requests.close()
            _become(files, **message)
        for file in files:
            _close(file)
        requests.sendall(answer.to_bytes(4, signed=True))


def _received(requests: Any) -> tuple[int, list[int]] | None:
    header, files, *_ = socket.recv_fds(requests, 4, 3)
    return (int.from_bytes(header), files) if header else None


def _exactly(requests: Any, length: int) -> bytes:
    data = b""
    while len(data) < length:
        data += requests.recv(length - len(data))
    return data


def _become(files: list[int], argv: list[str], cwd: str, environ: dict[str, str]) -> NoReturn:
    """Run the load driver in this process, which was just forked, as if it had been started so."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        _close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    forget_empty_variables()
    gevent.reinit()
    sys.argv[1:] = argv
    status = 1
    try:
        driver.main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(_socket(fileno=int(sys.argv[1])))
