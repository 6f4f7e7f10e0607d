"""A detserver whose service times and failures are written down beforehand; on keep-alive connections, in asyncio."""

import asyncio
import contextlib
import json
import selectors
import threading
from collections.abc import Callable
from typing import Self

from stub_server import BOX, MODEL, StubServer, entry

GOOD = {
    **{"implementation": "scripted", "model_set": "single", "total_inference_time_ms": 1.0},
    **{"timings_ms": {"forward": 1.0}, "batch_size": 1},
    "detections": [{"model_name": MODEL, "boxes": [BOX], "scores": [0.9], "labels": [1]}],
}


def _body(found: dict | None) -> bytes:
    return json.dumps(GOOD | {"detections": [GOOD["detections"][0] | found] if found is not None else []}).encode()


# Kind of an answer: its status, its body, and how many bytes of it are sent.
KINDS: dict[str, tuple[int, bytes, int | None]] = {
    "good": (200, _body({}), None),
    "error": (500, b'{"detail": "broken"}', None),
    "empty": (200, b"", None),
    "truncated": (200, _body({}), 40),
    "cut JSON": (200, _body({})[:40], None),
    "no model": (200, _body(None), None),
    "NaN": (200, _body({"scores": [float("nan")]}), None),
    "infinity": (200, _body({"boxes": [[0.0, 0.0, float("inf"), 1.0]]}), None),
}

# A timer is late by so much at most; the rest of a service time is waited for by yielding.
_TIMER_LATE_S = 1e-3

# Number of a request, from 0, and seconds since the first came, to the seconds that it takes and its kind.
Script = Callable[[int, float], tuple[float, str]]


class ScriptedServer(StubServer):
    """Serves one implementation, `scripted`, which answers as `script` says; a context manager.

    `took_s` is what each request really took, by its number, without waiting for its turn. `lag_s` is the longest time
    by which the server itself was late meanwhile, because its process had to wait for a core.

    Args:
        workers: requests that are served at a time, the others waiting for their turn; None: all.
        busy: whether it takes a core for itself, and is not late by the tenths of a millisecond in which one wakes up.
    """

    def __init__(self, script: Script, workers: int | None = None, busy: bool = False) -> None:
        super().__init__(entry("scripted"))
        self._script = script
        self._workers = workers
        self._busy = busy
        self._number = 0
        self._first_s: float | None = None
        self.took_s: dict[int, float] = {}
        self.lag_s = 0.0

    def __enter__(self) -> Self:
        # epoll, the default, rounds times up to whole milliseconds: 20 ms were 20.8.
        self._loop = asyncio.SelectorEventLoop(_NeverWaits() if self._busy else selectors.SelectSelector())
        self._turns = asyncio.Semaphore(self._workers or 10**6)
        listening = self._loop.create_server(lambda: _Talk(self), "127.0.0.1", 0, backlog=512)
        self._listening = self._loop.run_until_complete(listening)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._watch_itself(), self._loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._listening.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"

    async def _answer(self, transport: asyncio.Transport, method: str, path: str, came_s: float) -> None:
        if path.startswith("/infer/"):
            status, body, sent = KINDS[await self._infer_scripted(came_s)]
        else:
            parts, _, query = path.partition("?")
            pairs = dict(each.split("=") for each in query.split("&") if each)
            answer = self.get(parts) if method == "GET" else self.post(parts, pairs)
            status, body, sent = 200, json.dumps(answer).encode(), None
        transport.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:sent])
        if sent is not None:
            transport.close()

    async def _infer_scripted(self, came_s: float) -> str:
        self._first_s = came_s if self._first_s is None else self._first_s
        number, self._number = self._number, self._number + 1
        waits = self._turns.locked()
        async with self._turns:
            began_s = self._loop.time() if waits else came_s
            service_s, kind = self._script(number, began_s - self._first_s)
            await asyncio.sleep(service_s - _TIMER_LATE_S)
            while self._loop.time() < began_s + service_s:
                await asyncio.sleep(0)
            self.took_s[number] = self._loop.time() - began_s
        return kind

    async def _watch_itself(self) -> None:
        while True:
            before_s = self._loop.time()
            await asyncio.sleep(0.005)
            if self._number:
                self.lag_s = max(self.lag_s, self._loop.time() - before_s - 0.005)


class _NeverWaits(selectors.SelectSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(0)


class _Talk(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        came_s = self._server._loop.time()
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        lengths = [int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")]
        if len(rest) < sum(lengths):
            return
        self._received = rest[sum(lengths) :]
        method, path, _ = first.split()
        self._task = asyncio.Task(self._server._answer(self._transport, method, path, came_s), loop=self._server._loop)


def implied(arrivals_s: list[float], script: Script, workers: int | None = None) -> list[float]:
    """Latencies in seconds of such a server by calculation, when requests arrive at these times; without the failed."""
    free_s = [0.0] * (workers or len(arrivals_s))
    latencies_s = []
    for number, arrival_s in enumerate(arrivals_s):
        turn = min(range(len(free_s)), key=free_s.__getitem__)
        begins_s = max(arrival_s, free_s[turn])
        service_s, kind = script(number, begins_s - arrivals_s[0])
        free_s[turn] = begins_s + service_s
        if kind == "good":
            latencies_s.append(free_s[turn] - arrival_s)
    return latencies_s
