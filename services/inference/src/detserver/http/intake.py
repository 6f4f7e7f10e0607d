"""What every request passes first, and every answer last."""

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

STARTED = "detserver.started"
"""Key of the scope: when the request's headers were there, by `time.perf_counter`."""


class Intake:
    """Notes when a request came, answers HEAD as GET without the body, and lets connections end where the server does.

    What is refused by its headers alone is answered here: a server that is asked for more than it can do spends no time
    on routes and parameters of what it refuses.

    Args:
        refused: what answers a request that is refused by its headers, given its scope and when they were there; None
            for every other one.
        ending: whether the server is about to end.
        refusal: what answers a request, given its scope, that is cancelled because the server does not wait for it any
            longer.
    """

    def __init__(
        self,
        app: ASGIApp,
        refused: Callable[[Scope, float], ASGIApp | None],
        ending: Callable[[], bool],
        refusal: Callable[[Scope], ASGIApp],
    ) -> None:
        self._app = app
        self._refused = refused
        self._ending = ending
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as an ASGI application does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        answered = False

        async def send_on(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                if self._ending():
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            elif head and "body" in message:
                message["body"] = b""
            await send(message)

        # A copy: whoever sends the answer is to know that it was HEAD.
        started = time.perf_counter()
        inner = {**scope, STARTED: started, "method": "GET" if head else scope["method"]}
        try:
            await (self._refused(inner, started) or self._app)(inner, receive, send_on)
        except asyncio.CancelledError:
            if not answered:
                await self._refusal(inner)(inner, receive, send_on)
