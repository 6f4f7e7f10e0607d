"""Waiting for an answer no longer than somebody wants it."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request

from detserver.errors import ClientGone, DeadlineMissed

T = TypeVar("T")


@asynccontextmanager
async def by(deadline: float) -> AsyncIterator[None]:
    """End the block at `deadline`, by `time.perf_counter`.

    Raises:
        DeadlineMissed: it did not end by itself.
    """
    try:
        async with asyncio.timeout(deadline - time.perf_counter()):
            yield
    except TimeoutError as error:
        raise DeadlineMissed("its deadline is over before its answer was there; try again") from error


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; where the client closes its connection before, the device need not do it.

    Raises:
        ClientGone: it did.
    """
    working, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone("the client closed the connection before its answer was there")
    finally:
        working.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
