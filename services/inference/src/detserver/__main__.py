"""`detserver`, or `python -m detserver`: the server's command line."""

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from detserver.errors import BadConfiguration
from detserver.http.draining import DrainingServer
from detserver.settings import LOG_FORMAT, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

# After the device has failed.
_TELL_FOR_S = 1.0
_FORCE_S = 15.0


def main() -> int:
    """Serve until stopped; returns the exit status, 2 when a setting cannot be used."""
    with _ended_by_sigterm():
        try:
            settings = CliApp.run(Settings)
            logging.basicConfig(
                level=settings.log_level.upper(),
                format=LOG_FORMAT,
                stream=sys.stderr,
            )
            # Both log a line per request, which a hostile client could fill a disk with.
            for chatty in ("httpx", "python_multipart"):
                logging.getLogger(chatty).setLevel(logging.ERROR)
            # Before numba is imported; beside its sources it may not be allowed to write.
            os.environ.setdefault("NUMBA_CACHE_DIR", str(settings.cache_dir.absolute() / "numba"))
            with _garbage_left():
                # Torch and effdet take seconds to import: not for --help, or a setting that is plainly wrong.
                from detserver import lean_imports

                lean_imports.install()
                from detserver.http.routes import create_app

                app = create_app(settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = "DETSERVER_" + "_".join(str(part) for part in first["loc"]).upper()
            sys.stderr.write(f"error: {name}: {first['msg']}\n")
            return 2
        except (BadConfiguration, ValueError) as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
        return _serve(app, settings)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process with status 0, while it starts, too: as PID 1 of a container it would be ignored."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _garbage_left() -> Iterator[None]:
    """Let Python's garbage collector not look at what the block makes, neither in it nor later.

    Nearly all that is imported stays: looking for garbage in it took 0.6 CPU seconds of 7.3.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _serve(app: "FastAPI", settings: Settings) -> int:
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_limit_s,
    )
    server = app.state.server
    status = 0
    listening = DrainingServer(config, server.end)
    server.on_device_failure = partial(_end_soon, listening)
    try:
        listening.run()
    except KeyboardInterrupt:
        pass
    except SystemExit as error:  # uvicorn repeats the signal that ended it, or could not listen
        status = error.code if isinstance(error.code, int) else 1
    if server.engine.device_failed:
        status = 1
    if not server.ended or server.engine.device_failed:
        # Torch crashes when the interpreter ends below a load, which cannot be interrupted. After a failure of the
        # device CUDA's own end may hang, or crash.
        logging.shutdown()
        os._exit(status)
    return status


def _end_soon(server: uvicorn.Server) -> None:
    """Let clients and `GET /ready` hear the reason, then end, and by force where that hangs, as calls of CUDA may."""
    ask = partial(setattr, server, "should_exit", True)
    for after_s, end in ((_TELL_FOR_S, ask), (_FORCE_S, partial(os._exit, 1))):
        timer = threading.Timer(after_s, end)
        timer.daemon = True
        timer.start()


if __name__ == "__main__":
    sys.exit(main())
