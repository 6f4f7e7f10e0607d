"""`detserver`, or `python -m detserver`: the server's command line."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from detserver.errors import BadConfiguration
from detserver.http.draining import DrainingServer
from detserver.settings import Settings
from detserver.startup import starting

if TYPE_CHECKING:
    from fastapi import FastAPI

# Read when Ray is imported. The first lets every port of it be open on 127.0.0.1 alone, on Linux, too. The last: on a
# busy machine its proxy is up after more than the 5 s that Ray gives it before it starts another.
RAY_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}

# After the device has failed.
_TELL_FOR_S = 1.0
_FORCE_S = 15.0


def main() -> int:
    """Serve until stopped; returns the exit status, 2 when a setting cannot be used."""
    with _ended_by_sigterm():
        try:
            settings = CliApp.run(Settings)
            if settings.replicas:
                return _serve_replicas(settings)
            with starting(settings):
                # Takes seconds: not for --help, or a setting that is plainly wrong.
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


def _serve_replicas(settings: Settings) -> int:
    os.environ.update(RAY_ENVIRONMENT | os.environ)
    try:
        from detserver.cluster.local import serve_replicas
    except ModuleNotFoundError as error:
        raise BadConfiguration("--replicas needs Ray Serve: pip install 'ray[serve]'") from error
    with suppress(KeyboardInterrupt):
        serve_replicas(settings)
    return 0


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
