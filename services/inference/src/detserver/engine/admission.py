"""Which requests are taken in: no more than there are places, and none that would miss its deadline."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from detserver.engine.work import Key
from detserver.errors import DeadlineMissed, DetserverError, QueueFull

# Of the newest measurement in what is expected of the next.
_NEWEST = 0.2

# What is expected may take so many times as long: decoding threads and the device share processors with each other and
# with all that is refused.
_MARGIN = 1.5

# Bodies that are received, and requests that wait for a load, for each place. They hold none, so that slow clients and
# slow loads keep nobody out; but each may hold a body in memory.
_WAITING_PER_PLACE = 2


class Admission:
    """Places for requests in work, and what they are expected to take.

    Places are taken and given back by the event loop's thread alone; `note` may be called from any.

    Args:
        places: requests in work at the same time, from decoding to the answer.
        threads: that decode.
    """

    def __init__(self, places: int, threads: int) -> None:
        self._places = places
        self._threads = threads
        self._in_work: Counter[Key] = Counter()
        self._waiting = 0
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
            QueueFull, DeadlineMissed: see there.
        """
        expected_s = self.expected_s(key)
        if self._in_work.total() >= self._places:
            raise _later(QueueFull(f"{self._places} requests are in work already; try again"), expected_s)
        left_s = deadline - time.perf_counter()
        if expected_s > left_s:
            reason = f"it would take about {expected_s:.2g} s, and its deadline is in {max(left_s, 0):.2g} s; try again"
            raise _later(DeadlineMissed(reason), expected_s)

    @contextmanager
    def waiting(self, key: Key, deadline: float) -> Iterator[None]:
        """Let a request of which not all is there yet, its body or what it asks for, wait without a place.

        Raises:
            QueueFull, DeadlineMissed: see `check`.
        """
        self.check(key, deadline)
        most = _WAITING_PER_PLACE * self._places
        if self._waiting >= most:
            raise QueueFull(f"{most} requests are being received, or wait for a load, already; try again")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @contextmanager
    def place(self, key: Key, deadline: float) -> Iterator[None]:
        """Hold one of the places.

        Raises:
            QueueFull, DeadlineMissed: see `check`.
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
