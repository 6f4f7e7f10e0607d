"""Which requests are taken in: no more than there are places, and none that would miss its deadline."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from detserver.engine.work import Key
from detserver.errors import DeadlineTooNear, DetserverError, QueueFull

# Of the newest measurement in what is expected of the next.
_NEWEST = 0.2

# What is expected may take so many times as long: decoding threads and the device share processors with each other and
# with all that is refused.
_MARGIN = 1.5


class Admission:
    """Places for requests in work, and what they are expected to take.

    A body that still arrives, and a request that waits for a load, hold no place, so that slow clients and slow loads
    keep nobody out. What they hold is bounded by itself: bytes of bodies, and requests for the same load.

    Places are taken and given back by the event loop's thread alone; `note_…` may be called from any.

    Args:
        places: requests in work at the same time, from decoding to the answer, and that wait for one load.
        threads: that decode.
        most_bytes: of bodies that are held before they have a place.
    """

    def __init__(self, places: int, threads: int, most_bytes: int) -> None:
        self._places = places
        self._threads = threads
        self._most_bytes = most_bytes
        self._in_work: Counter[Key] = Counter()
        self._loading: Counter[Key] = Counter()
        self._bytes = 0
        self._preparing_s = 0.0
        self._device_s: dict[Key, float] = {}

    def note_preparing(self, seconds: float) -> None:
        """Learn what decoding and letterboxing of an image took."""
        self._preparing_s = _next(self._preparing_s, seconds)

    def note_device(self, key: Key, seconds: float) -> None:
        """Learn what the device took for an image, its share where it was one of a batch."""
        self._device_s[key] = _next(self._device_s.get(key, 0.0), seconds)

    def device_s(self, key: Key) -> float:
        """Seconds that the device is expected to take for an image; 0 where it has had none yet."""
        return self._device_s.get(key, 0.0)

    def expected_s(self, key: Key) -> float:
        """Seconds from now until one more request of `key` is answered, where all that has a place goes first."""
        device_s = sum(count * self.device_s(each) for each, count in self._in_work.items()) + self.device_s(key)
        preparing_s = self._preparing_s * math.ceil((self._in_work.total() + 1) / self._threads)
        return _MARGIN * (device_s + preparing_s)

    def check(self, key: Key, deadline: float) -> None:
        """Refuse what would find no place, or miss its deadline.

        Args:
            key: of the request.
            deadline: when it has to be answered, by `time.perf_counter`.

        Raises:
            QueueFull, DeadlineTooNear: see there.
        """
        expected_s = self.expected_s(key)
        if self._in_work.total() >= self._places:
            raise _later(QueueFull(f"{self._places} requests are in work already; try again"), expected_s)
        left_s = deadline - time.perf_counter()
        if expected_s > left_s:
            reason = f"it would take about {expected_s:.2g} s, and its deadline is in {max(left_s, 0):.2g} s; try again"
            raise _later(DeadlineTooNear(reason), expected_s)

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Account for a body in the block: the function is told of each piece, by its size.

        Raises:
            QueueFull: from that function, where all bodies together are too large.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._bytes + size > self._most_bytes:
                raise QueueFull(f"{self._bytes / 1e6:.0f} MB of other bodies are being received; try again")
            held += size
            self._bytes += size

        try:
            yield hold
        finally:
            self._bytes -= held

    @contextmanager
    def loading(self, key: Key) -> Iterator[None]:
        """Let a request wait for the load of `key`.

        Raises:
            QueueFull: as many as there are places wait for it already.
        """
        if self._loading[key] >= self._places:
            raise QueueFull(f"{self._places} requests wait until {key[0]} is loaded for {key[1]} already; try again")
        self._loading[key] += 1
        try:
            yield
        finally:
            self._loading[key] -= 1

    @contextmanager
    def place(self, key: Key, deadline: float) -> Iterator[None]:
        """Hold one of the places.

        Raises:
            QueueFull, DeadlineTooNear: see `check`.
        """
        self.check(key, deadline)
        self._in_work[key] += 1
        try:
            yield
        finally:
            self._in_work[key] -= 1


def _next(known: float, seconds: float) -> float:
    return known + _NEWEST * (seconds - known) if known else seconds


def _later(error: DetserverError, expected_s: float) -> DetserverError:
    error.retry_after_s = max(1, math.ceil(expected_s))
    return error
