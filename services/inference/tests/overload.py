"""An open loop of uploads against a real server, and what became of each: for tests, and for docs/results.

    python services/inference/tests/overload.py overload PHOTO [SECONDS]
    python services/inference/tests/overload.py soak PHOTO [MINUTES]

print the tables of docs/results/overload.md, for servers of their own.
"""

import asyncio
import math
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from running_server import PROCESS, RunningServer, start, stop

_HEADERS_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Outcome:
    """What became of one request: its status, 0 where the connection broke before there was one.

    `late_s` is how long after its time it was sent, which is the client's fault, and `took_s` from then to the answer.
    """

    status: int
    sent: float
    late_s: float
    took_s: float
    retry_after: bool = False


@dataclass
class Load:
    """Outcomes of a load, and seconds that `GET /health` took meanwhile."""

    outcomes: list[Outcome] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)

    def counts(self) -> Counter[int]:
        return Counter(outcome.status for outcome in self.outcomes)

    def took_s(self, *statuses: int) -> list[float]:
        return [outcome.took_s for outcome in self.outcomes if outcome.status in statuses]


class Client:
    """Sends one request after the other on a connection of its own."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._address.hostname, self._address.port)

    async def ask(self, message: bytes) -> tuple[int, bytes]:
        """Status and headers of the answer; 0 where there is none."""
        try:
            await self.connect()
            assert self._streams is not None
            reader, writer = self._streams
            writer.write(message)
            head = await reader.readuntil(_HEADERS_END)
            if found := re.search(rb"(?i)content-length: (\d+)", head):
                await reader.readexactly(int(found[1]))
            elif re.search(rb"(?i)transfer-encoding: chunked", head):  # a refusal by Ray's proxy
                await reader.readuntil(b"0\r\n\r\n")
            if re.search(rb"(?i)connection: close", head):
                self.close()
            return int(head.split(b" ", 2)[1]), head
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0, b""

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def post(implementation: str, content: bytes, *headers: str) -> bytes:
    """A request of `content` as a raw body."""
    lines = [
        f"POST /infer/{implementation} HTTP/1.1",
        "Host: localhost",
        "Content-Type: image/jpeg",
        f"Content-Length: {len(content)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


async def closed_loop(url: str, message: bytes, users: int, seconds: float) -> float:
    """Requests per second of so many users that wait for each answer, after one each that does not count."""
    answered = 0

    async def user() -> None:
        nonlocal answered
        client = Client(url)
        await client.ask(message)
        ends = time.perf_counter() + seconds
        while True:
            status, _ = await client.ask(message)
            if time.perf_counter() > ends:
                break
            answered += status == 200
        client.close()

    await asyncio.gather(*(user() for _ in range(users)))
    return answered / seconds


async def open_loop(url: str, message: bytes, rate: float, seconds: float, connections: int) -> Load:
    """Send `rate` requests a second, whatever comes back; a request waits where no connection is free."""
    load = Load()
    free: asyncio.Queue[Client] = asyncio.Queue()
    for _ in range(connections):
        client = Client(url)
        await client.connect()
        free.put_nowait(client)

    async def one(due: float) -> None:
        client = await free.get()
        sent = time.perf_counter()
        status, head = await client.ask(message)
        took_s = time.perf_counter() - sent
        load.outcomes.append(Outcome(status, sent, sent - due, took_s, b"retry-after:" in head.lower()))
        free.put_nowait(client)

    async with _health(url, load):
        start = time.perf_counter()
        asked = []
        for number in range(round(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(one(due)))
        await asyncio.gather(*asked)
    while not free.empty():
        free.get_nowait().close()
    return load


@asynccontextmanager
async def _health(url: str, load: Load) -> AsyncIterator[None]:
    """Ask `GET /health` ten times a second meanwhile."""

    async def ask() -> None:
        client = Client(url)
        while True:
            start = time.perf_counter()
            if (await client.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"))[0] == 200:
                load.health_s.append(time.perf_counter() - start)
            await asyncio.sleep(0.1)

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking


def percentile(values: Sequence[float], rank: float) -> float:
    """The smallest value that so many percent are not above; NaN of none."""
    return sorted(values)[max(0, math.ceil(rank / 100 * len(values)) - 1)] if values else math.nan


def counted(metrics: str, implementation: str) -> Counter[int]:
    """Requests by status, as the server's metrics count them; of a cluster those of all replicas."""
    counts: Counter[int] = Counter()
    for status, count in re.findall(
        rf'detserver_requests_total{{implementation="{implementation}",.*status="(\d+)".*}} (\S+)', metrics
    ):
        counts[int(status)] += int(float(count))
    return +counts


def overload(photo: str, seconds: str = "60") -> None:
    """Print a table: what a server does that is asked for five times what it can do."""
    content = Path(photo).read_bytes()
    _row(
        *("implementation", "capacity (1/s)", "offered (1/s)", "deadline (ms)", "answered", "p99 of these (ms)"),
        *("refused", "p99 of these (ms)", "else", "`/health` p99 (ms)", "back after (ms)", "client = server"),
    )
    _row(*["---"] * 12)
    for implementation, deadline_ms in (("invalid", 500), ("invalid", 100), ("fastest", 4000)):
        with _server(implementation) as server:
            headers = {"Content-Type": "image/jpeg", "X-Deadline-Ms": str(deadline_ms)}
            message = post(implementation, content, f"X-Deadline-Ms: {deadline_ms}")
            capacity = asyncio.run(closed_loop(server.url, post(implementation, content), 4, 8.0))
            before = counted(httpx.get(f"{server.url}/metrics").text, implementation)
            load = asyncio.run(open_loop(server.url, message, 5 * capacity, float(seconds), 128))
            ended = time.perf_counter()
            after = counted(httpx.get(f"{server.url}/metrics").text, implementation)
            while not server.infer(implementation, content=content, headers=headers).is_success:
                time.sleep(0.02)
            back_s = time.perf_counter() - ended
            counts = load.counts()
            refused = counts[429] + counts[503]
            _row(
                *(implementation, f"{capacity:.3g}", f"{5 * capacity:.3g}", deadline_ms, counts[200]),
                *(f"{1e3 * percentile(load.took_s(200), 99):.0f}", refused),
                *(f"{1e3 * percentile(load.took_s(429, 503), 99):.0f}", counts.total() - counts[200] - refused),
                *(f"{1e3 * percentile(load.health_s, 99):.0f}", f"{1e3 * back_s:.0f}"),
                "yes" if counts == after - before else f"{dict(counts)}, {dict(after - before)}",
            )


def soak(photo: str, minutes: str = "10") -> None:
    """Print the server's resident memory, minute by minute, while it is asked for 80 % of what it can do."""
    content = Path(photo).read_bytes()
    with _server("invalid") as server:
        message = post("invalid", content)
        rate = 0.8 * asyncio.run(closed_loop(server.url, message, 4, 8.0))
        _row("minute", "requests", "answered", "p99 (ms)", "`/health` p99 (ms)", "resident (MB)")
        _row(*["---"] * 6)
        for minute in range(int(minutes)):
            load = asyncio.run(open_loop(server.url, message, rate, 60.0, 64))
            resident_mb = httpx.get(f"{server.url}/vram").json()["resident_mb"]
            counts = load.counts()
            p99s_ms = (1e3 * percentile(values, 99) for values in (load.took_s(200), load.health_s))
            _row(minute + 1, counts.total(), counts[200], *(f"{ms:.0f}" for ms in p99s_ms), f"{resident_mb:.1f}")


@contextmanager
def _server(implementation: str) -> Iterator[RunningServer]:
    settings = {"DETSERVER_PRELOAD": implementation, "DETSERVER_DEFAULT_MODEL_SET": "mixed"}
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder), True, settings, PROCESS)
        yield server
        stop(server)


def _row(*cells: object) -> None:
    sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"overload": overload, "soak": soak}[sys.argv[1]](*sys.argv[2:])
