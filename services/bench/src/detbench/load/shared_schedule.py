"""The open loop of Locust: one schedule that its workers share out among them, while they come and go."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import STATE_RUNNING, STATE_SPAWNING, MasterRunner, WorkerRunner

from detbench.load.dispatcher import Dispatcher
from detbench.load.schedules import Schedule, Slot

log = logging.getLogger(__name__)

READY = "detbench_ready"
SHARE = "detbench_share"

# From when a share is told to when it counts: what a message takes, on machines that are busy.
_TOLD_BEFORE_S = 1.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Share:
    """From `from_s` on, seconds since the start: the slots of worker number `worker` of `workers`."""

    from_s: float
    worker: int
    workers: int


class OpenLoop:
    """The part of a schedule that this process sends, at its times.

    Args:
        schedule: of all processes together.
        seed: of the photos.
        drop: called with the time of each slot for which no sender is idle.
    """

    def __init__(self, schedule: Schedule, seed: int, drop: Callable[[float], None]) -> None:
        self.dispatcher = Dispatcher(drop, seed)
        self._schedule = schedule
        self._shares: list[Share] = []
        self._dispatching: gevent.Greenlet[..., None] | None = None

    @property
    def begun(self) -> bool:
        """Whether it has a share."""
        return bool(self._shares)

    def take(self, start_s: float, share: Share) -> None:
        """Send this share of the schedule that begins at `start_s`, CLOCK_MONOTONIC; in place of an earlier share."""
        self._shares.append(share)
        if self._dispatching is None:
            self._dispatching = gevent.spawn(self.dispatcher.run, self._slots(), start_s, float("inf"))

    def end(self) -> None:
        """Send no more."""
        if self._dispatching is not None:
            self._dispatching.kill(block=False)

    def _slots(self) -> Iterator[Slot]:
        """The slots of each share, up to where the next one begins."""
        number = 0
        while number < len(self._shares):
            share = self._shares[number]
            for slot in self._schedule.slots(share.worker, share.workers):
                if number + 1 < len(self._shares) and slot.time_s >= self._shares[number + 1].from_s:
                    break
                if slot.time_s >= share.from_s:
                    yield slot
            else:
                return
            number += 1


class Sharing:
    """The master's side: tells each worker its share when all are ready, and again when one has come or gone."""

    def __init__(self) -> None:
        self._ready: set[str] = set()
        self._start: float | None = None
        self._told: list[str] = []

    def begin(self) -> None:
        """Forget the test before."""
        self._ready.clear()
        self._start, self._told = None, []

    def on_ready(self, msg: Any, **_: object) -> None:
        """Take note of a worker whose senders are idle."""
        self._ready.add(msg.node_id)

    def watch(self, environment: Environment) -> None:
        """Share out again whenever a worker goes or comes, until the test ends; Locust tells nobody of either."""
        runner = environment.runner
        assert runner is not None
        while runner.state in (STATE_SPAWNING, STATE_RUNNING):
            self.share_out(environment)
            gevent.sleep(_TOLD_BEFORE_S / 2)

    def share_out(self, environment: Environment) -> None:
        """Tell the workers their shares, unless one is not ready yet, or nothing has changed."""
        runner = environment.runner
        assert isinstance(runner, MasterRunner)
        clients = (*runner.clients.ready, *runner.clients.spawning, *runner.clients.running)
        workers = [each.id for each in clients if each.user_count]  # one without a sender cannot send
        if not workers or not self._ready.issuperset(workers) or workers == self._told:
            return
        now = time.time()
        if lost := [worker for worker in self._told if worker not in workers]:
            log.warning("%d of %d workers are gone: their share was not sent until now", len(lost), len(self._told))
        self._start = self._start or now + _TOLD_BEFORE_S
        self._told = workers
        for number, worker in enumerate(workers):
            share = {"from_s": max(0.0, now + _TOLD_BEFORE_S - self._start), "worker": number, "workers": len(workers)}
            runner.send_message(SHARE, {"start": self._start, "share": share}, worker)


def begin_alone(environment: Environment) -> None:
    """Send the whole schedule, in a Locust without workers, when all of its senders are idle."""
    open_loop: OpenLoop = environment.open_loop  # type: ignore[attr-defined]
    if _senders_are_idle(environment, open_loop) and not open_loop.begun:  # or their number was changed meanwhile
        open_loop.take(time.monotonic() + _POLL_S, Share(0.0, 0, 1))


def report_ready(environment: Environment) -> None:
    """Tell the master that all senders of this worker are idle."""
    runner = environment.runner
    assert isinstance(runner, WorkerRunner)
    if _senders_are_idle(environment, environment.open_loop):  # type: ignore[attr-defined]
        runner.send_message(READY)


def take_share(environment: Environment, msg: Any, **_: object) -> None:
    """Send what the master says; its clock, which is the time of day, is this machine's or agrees with it."""
    open_loop: OpenLoop | None = environment.open_loop  # type: ignore[attr-defined]
    if open_loop is not None:
        start_s = time.monotonic() + msg.data["start"] - time.time()
        open_loop.take(start_s, Share(**msg.data["share"]))


def _senders_are_idle(environment: Environment, open_loop: OpenLoop) -> bool:
    """Wait until the senders of this process are; false where the test ends before, or the load has begun."""
    runner = environment.runner
    assert runner is not None
    while runner.state in (STATE_SPAWNING, STATE_RUNNING) and not open_loop.begun:
        if 0 < runner.user_count <= open_loop.dispatcher.idle:
            return True
        gevent.sleep(_POLL_S)
    return False
