"""The open loop: a dispatcher hands each slot of a schedule, at its time, to an idle sender."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import gevent
from gevent.event import AsyncResult
from locust.exception import StopUser

from detbench.load.schedules import Slot

# A sender has its slot so long before, makes the request, and yields until it is due: gevent's timers are late by a
# millisecond, because epoll's timeouts are whole ones.
_AHEAD_S = 1.5e-3
# Yielding takes the core, which a server on the same machine may need. Where slots are so many that it would take more
# of the time than this, they come when the timer says. The share is of the load so far and one second more.
_YIELDING_SHARE, _CREDIT_S = 0.2, 1.0
# A dispatcher that has not come to a slot so long after the end of the load does not send it any more.
_OVERTIME_S = 1.0


class Task(NamedTuple):
    """What a sender is to send: the slot's number, and its time on CLOCK_MONOTONIC."""

    number: int
    scheduled_s: float


class Dispatcher:
    """Walks through slots, and gives each to the sender that became idle last, whose connection is the warmest.

    Args:
        drop: called with the time of each slot for which no sender is idle.
        seed: of the photos that the slots carry, see `photo_of`.
    """

    def __init__(self, drop: Callable[[float], None], seed: int) -> None:
        self.seed = seed
        self._drop = drop
        self._idle: list[AsyncResult[Task]] = []
        self._ended = False

    @property
    def idle(self) -> int:
        """Senders that wait for a slot."""
        return len(self._idle)

    def next_task(self) -> Task:
        """Wait for what to send next; a sender calls it, makes the request, and calls `yield_until`.

        Raises:
            StopUser: there is no more.
        """
        if self._ended:
            raise StopUser
        waiting: AsyncResult[Task] = AsyncResult()
        self._idle.append(waiting)
        task = waiting.get()
        assert task is not None
        return task

    def run(self, slots: Iterable[Slot], start_s: float, closes_s: float) -> None:
        """Hand out every slot at `start_s` + its time; then send the senders home.

        Args:
            slots: by time, ascending; all are before `closes_s`.
            start_s: on CLOCK_MONOTONIC.
            closes_s: on the same clock; what it has not come to a second later is dropped.
        """
        yielded_s, before_s = 0.0, start_s
        for number, time_s in slots:
            due_s = start_s + time_s
            ahead = yielded_s < _YIELDING_SHARE * (due_s - start_s + _CREDIT_S)
            _sleep_until(due_s - _AHEAD_S if ahead else due_s)
            if not self._idle:
                _sleep_until(due_s)
            yielded_s += max(0.0, due_s - max(before_s, time.monotonic()))
            before_s = due_s
            if self._idle and time.monotonic() < closes_s + _OVERTIME_S:
                self._idle.pop().set(Task(number, due_s))
            else:
                self._drop(due_s)
        self._ended = True
        for waiting in self._idle:
            waiting.set_exception(StopUser())


def yield_until(time_s: float) -> None:
    """Let others run until a time that is near, on CLOCK_MONOTONIC; a timer would be late."""
    while time.monotonic() < time_s:
        gevent.sleep(0)


def _sleep_until(time_s: float) -> None:
    """Sleep. The senders run meanwhile, also where it is past: a late dispatcher must not starve them."""
    gevent.sleep(max(0.0, time_s - time.monotonic()))
