"""What waits for the device, and how it becomes batches."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from detserver.engine.work import Call, Key, Request


@dataclass(frozen=True)
class Batching:
    """How the requests of one implementation and model set run together.

    Attributes:
        fitting: of so many images that wait, how many are best run together; 1 at least.
        max_size: how many that are at most.
        delay_s: how long the first image of a batch waits for more while the device is free.
    """

    fitting: Callable[[int], int]
    max_size: int
    delay_s: float = 0.0


ALONE = Batching(lambda _: 1, 1)
"""One image at a time."""


class WorkQueue:
    """Requests and calls in the order of arrival, except that those of equal keys which wait together run together.

    A batch is made when the device asks for one. All methods may be called from any thread.

    Args:
        batching: how requests of a key run together.
        alive: whether a request is to be run still, at a time by `time.perf_counter`; what is not is dropped.
    """

    def __init__(self, batching: Callable[[Key], Batching], alive: Callable[[Request, float], bool]) -> None:
        self._batching = batching
        self._alive = alive
        self._items: list[Request | Call] = []
        self._changed = threading.Condition()
        self._closed = False

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return sum(isinstance(item, Request) for item in tuple(self._items))

    def put(self, item: Request | Call) -> bool:
        """Add to the end; returns whether the queue was open still."""
        with self._changed:
            if not self._closed:
                self._items.append(item)
                self._changed.notify()
            return not self._closed

    def close(self) -> list[Request | Call]:
        """Let `take` return None from now on; returns what was waiting."""
        with self._changed:
            self._closed = True
            left, self._items = self._items, []
            self._changed.notify()
            return left

    def take(self) -> list[Request] | Call | None:
        """Wait for the next batch, requests of one key, or the next call; None once the queue is closed."""
        with self._changed:
            while not self._closed:
                now = time.perf_counter()
                self._items = [item for item in self._items if isinstance(item, Call) or self._alive(item, now)]
                found, more_in_s = self._next(now)
                if found is not None:
                    return found
                self._changed.wait(more_in_s)
            return None

    def _next(self, now: float) -> tuple[list[Request] | Call | None, float | None]:
        """What can run now, and in how many seconds there is something where nothing can; None: nobody knows."""
        more_in_s: float | None = None
        seen: set[Key] = set()
        for item in self._items:
            if isinstance(item, Call):
                self._items.remove(item)
                return item, None
            if item.key in seen:
                continue
            seen.add(item.key)
            batching = self._batching(item.key)
            waiting = [each for each in self._items if isinstance(each, Request) and each.key == item.key]
            left_s = item.queued + batching.delay_s - now
            if left_s <= 0 or len(waiting) >= batching.max_size:
                batch = waiting[: batching.fitting(min(len(waiting), batching.max_size))]
                self._items = [each for each in self._items if each not in batch]
                return batch, None
            more_in_s = left_s if more_in_s is None else min(more_in_s, left_s)
        return None, more_in_s
