"""A thread for what takes long: downloads, calibration, conversion, compilation. The device serves meanwhile."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from detserver.errors import NotReady

T = TypeVar("T")

# Of a thread that works beside others, 0 to 19; the processes and threads that it starts inherit it.
_GENTLY = 10

# A thread that works in Python keeps the interpreter for this long when another one asks for it; 5 ms unless it is told
# otherwise. The device thread asks after each of a network's thousands of operators.
_SHORT_TURNS_S = 1e-4


class Beside:
    """Runs functions one after the other, each in a thread of its own beside the device's.

    Attributes:
        busy: whether it is in the middle of one.
    """

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._closed = False
        self.busy = False

    def run(self, function: Callable[[], T], gently: bool) -> "Future[T]":
        """Run `function` after those that wait already.

        Args:
            gently: whether what else runs in this process goes first.
        """
        future: Future[T] = Future()
        threading.Thread(target=self._work, args=(function, gently, future), name="load", daemon=True).start()
        return future

    def close(self) -> None:
        """Refuse what waits, and what comes."""
        self._closed = True

    def _work(self, function: Callable[[], T], gently: bool, future: "Future[T]") -> None:
        with self._one_at_a_time:
            if not future.set_running_or_notify_cancel():
                return
            self.busy = True
            try:
                if self._closed:
                    raise NotReady("the server is about to end")
                with _gently() if gently else nullcontext():
                    result = function()
            except BaseException as error:  # a thread has nobody else to tell
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                self.busy = False


class Turns:
    """A lock that goes to whichever thread has waited longest; one that holds it may take it again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[int] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock for the block."""
        me = threading.get_ident()
        if self._waiting and self._waiting[0] == me:
            yield
            return
        with self._changed:
            self._waiting.append(me)
            self._changed.wait_for(lambda: self._waiting[0] == me)
        try:
            yield
        finally:
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()


@contextmanager
def _gently() -> Iterator[None]:
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _GENTLY)
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SHORT_TURNS_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
