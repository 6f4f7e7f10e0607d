"""Ending without losing a request."""

import asyncio
import time
from collections.abc import Callable
from socket import socket

import uvicorn

# Under load the next request of a connection comes within milliseconds; one that was idle for this long stays idle.
_NEXT_REQUEST_S = 1.0


class DrainingServer(uvicorn.Server):
    """On SIGTERM uvicorn closes idle connections at once, and a request may be on its way on each of them.

    This one waits for it a moment. The application is told, and answers with `Connection: close` from then on, so that
    no client sends another one.

    Args:
        on_end: called when the server begins to end, and accepts no new connections.
    """

    def __init__(self, config: uvicorn.Config, on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_end = on_end

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """See `uvicorn.Server.shutdown`."""
        for listener in self.servers:
            listener.close()
        self._on_end()
        until = time.monotonic() + _NEXT_REQUEST_S
        while self.server_state.connections and not self.force_exit and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)
