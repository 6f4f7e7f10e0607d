"""Ending without losing a request."""

import asyncio
import time
from collections.abc import Callable
from socket import socket
from types import FrameType

import uvicorn

# Under load the next request of a connection comes within milliseconds; one that was idle for this long stays idle.
_NEXT_REQUEST_S = 1.0


class DrainingServer(uvicorn.Server):
    """On SIGTERM uvicorn closes idle connections at once, and a request may be on its way on each of them.

    This one waits for it a moment. The application is told, and answers with `Connection: close` from then on, so that
    no client sends another one. A second signal ends the server at once, without what is in work.

    Args:
        on_end: called when the server begins to end, and accepts no new connections.
    """

    def __init__(self, config: uvicorn.Config, on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_end = on_end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server.handle_exit`, which lets only a second SIGINT end it at once."""
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """See `uvicorn.Server.shutdown`."""
        for listener in self.servers:
            listener.close()
        self._on_end()
        until = time.monotonic() + _NEXT_REQUEST_S
        while self.server_state.connections and not self.force_exit and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)
