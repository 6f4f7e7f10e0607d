"""Counting the requests of one run: those that were issued in the window, however late they are answered."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detbench.api.schemas import Inference
from detbench.load.answers import DistinctAnswers
from detbench.load.request_log import RequestLog
from detbench.load.tally import LONGEST_S, Tally, new_histogram


@dataclass(eq=False)
class Request:
    """One request on its way.

    Attributes:
        user: number of the user who sends it.
        sent_s: when, on CLOCK_MONOTONIC.
        scheduled_s: when it was to be sent; in a closed loop, which has no schedule, `sent_s`.
        photo: SHA-256 of the file that it carries.
        answer: what came back, where it is good.
    """

    user: int
    sent_s: float
    scheduled_s: float
    photo: str = field(kw_only=True)
    answer: Inference | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Ended:
    request: Request
    answered_s: float
    error: str | None


class Recorder:
    """Is told of every request when it is sent, and listens to Locust's `request` event for its end.

    What ends before the window is open is kept until then, for a request may have been issued in it. There is no clock
    in here: all times come with the requests, in seconds of CLOCK_MONOTONIC, which all processes of a machine share.

    Args:
        limits_s: by name, which `late` counts by.
        answers: receives the good answers to what was issued in the window; None: they are not kept.
        requests: receives every request of the window; None: they are not kept.
    """

    def __init__(
        self,
        limits_s: Mapping[str, float] | None = None,
        answers: DistinctAnswers | None = None,
        requests: RequestLog | None = None,
    ) -> None:
        self._limits_s = limits_s or {}
        self._late: Counter[str] = Counter()
        self._answers = answers
        self._requests = requests
        self._warm: set[int] = set()
        self._warmed_s = 0.0
        self._window: tuple[float, float] | None = None
        self._early: list[_Ended] = []
        self._under_way: set[Request] = set()
        self._latency, self._service, self._lateness = new_histogram(), new_histogram(), new_histogram()
        self._issued = self._answered = self._dropped = self._answered_within = self._batch_sizes = 0
        self._last_answer_s = 0.0
        self._errors: Counter[str] = Counter()
        self._stages_ms: defaultdict[str, float] = defaultdict(float)
        self._answered_by: Counter[int] = Counter()
        self._answered_by_replica: Counter[str] = Counter()
        self._issued_by: Counter[int] = Counter()
        self._latency_s_by: defaultdict[int, float] = defaultdict(float)

    @property
    def warm_users(self) -> int:
        """Users that have had their first answer."""
        return len(self._warm)

    @property
    def warmed_s(self) -> float:
        """When the last of them had it."""
        return self._warmed_s

    @property
    def ended(self) -> int:
        """Requests of the window that were answered or failed so far."""
        return self._answered + self._errors.total()

    @property
    def dropped(self) -> int:
        """Slots of the window that were not sent so far."""
        return self._dropped

    @property
    def failed(self) -> int:
        """Requests of the window that ended without a good answer so far."""
        return self._errors.total()

    def late(self, now_s: float) -> dict[str, int]:
        """By the name of each limit, how many requests of the window cannot hold it any more.

        They failed, or took longer from when they were sent, or have taken longer by `now_s` and are not answered. What
        a request waited for the generator is not in it: it is not the server's.
        """
        opened_s, closes_s = self._window or (math.inf, math.inf)
        waiting_s = [now_s - each.sent_s for each in self._under_way if opened_s <= each.scheduled_s <= closes_s]
        return {
            name: self.failed + self._late[name] + sum(waited_s > limit_s for waited_s in waiting_s)
            for name, limit_s in self._limits_s.items()
        }

    @property
    def under_way(self) -> int:
        """Requests that were sent and have not ended yet."""
        return len(self._under_way)

    def open(self, opened_s: float, closes_s: float) -> None:
        """Set the window: what is issued from `opened_s` to `closes_s` counts."""
        self._window = opened_s, closes_s
        self._last_answer_s = opened_s
        early, self._early = self._early, []
        for ended in early:
            self._count(ended, opened_s, closes_s)

    def sending(self, request: Request) -> None:
        """Take note of a request that is sent now."""
        self._under_way.add(request)

    def drop(self, scheduled_s: float) -> None:
        """Count a slot of the window that is not sent, because no sender is idle."""
        self._issued += 1
        self._dropped += 1
        if self._requests is not None:
            self._requests.add(scheduled_s, None, None, "", "dropped")

    def on_request(
        self, response_time: float, exception: BaseException | None, context: dict[str, Any], **_: object
    ) -> None:
        """Count a request that has ended; `response_time` is Locust's, in ms, without the parsing of the answer."""
        request: Request = context["request"]
        self._under_way.discard(request)
        answered_s = request.sent_s + response_time / 1e3
        if request.user not in self._warm:
            self._warm.add(request.user)
            self._warmed_s = max(self._warmed_s, answered_s)
        ended = _Ended(request, answered_s, None if exception is None else str(exception))
        if self._window is None:
            self._early.append(ended)
        else:
            self._count(ended, *self._window)

    def tally(self, cpu_percent: float, drain_s: float) -> Tally:
        """What was counted. What was sent and has not ended is a failure now.

        Args:
            cpu_percent: CPU of this process during the window; 100 is one core.
            drain_s: how long after the window's end answers were waited for, to name that failure.

        Raises:
            ValueError: the window was never opened.
        """
        if self._window is None:
            raise ValueError("the window is not open")
        opened_s, closes_s = self._window
        for request in self._under_way:
            if opened_s <= request.scheduled_s <= closes_s:
                self._sent(request)
                self._fail(request, None, f"no answer within {drain_s:g} s after the end of the load")
        self._under_way.clear()
        seconds = range(max((*self._answered_by, *self._issued_by), default=-1) + 1)
        return Tally(
            opened_s=opened_s,
            closes_s=closes_s,
            last_answer_s=self._last_answer_s,
            issued=self._issued,
            answered=self._answered,
            dropped=self._dropped,
            errors=dict(self._errors),
            answered_within=self._answered_within,
            answered_by_replica=dict(self._answered_by_replica),
            latency=self._latency.encode().decode(),
            service=self._service.encode().decode(),
            lateness=self._lateness.encode().decode(),
            stages_ms=dict(self._stages_ms),
            batch_sizes=self._batch_sizes,
            answered_by_second=[self._answered_by[second] for second in seconds],
            issued_by_second=[self._issued_by[second] for second in seconds],
            latency_s_by_second=[self._latency_s_by[second] for second in seconds],
            cpu_percent=[cpu_percent],
        )

    def _count(self, ended: _Ended, opened_s: float, closes_s: float) -> None:
        request = ended.request
        if opened_s < ended.answered_s <= closes_s:
            self._last_answer_s = max(self._last_answer_s, ended.answered_s)
            if ended.error is None:
                self._answered_within += 1
                self._answered_by[int(ended.answered_s - opened_s)] += 1
                if request.answer is not None and request.answer.replica is not None:
                    self._answered_by_replica[request.answer.replica] += 1
        if not opened_s <= request.scheduled_s <= closes_s:
            return
        self._sent(request)
        latency_s = ended.answered_s - request.scheduled_s
        answer = request.answer
        if ended.error is not None or answer is None:
            self._fail(request, ended.answered_s, ended.error or "no answer")
        elif latency_s > LONGEST_S:  # which the histograms do not hold
            self._fail(request, ended.answered_s, f"answered after more than {LONGEST_S} s")
        else:
            self._latency.record_value(_microseconds(latency_s))
            service_s = ended.answered_s - request.sent_s
            self._service.record_value(_microseconds(service_s))
            self._late.update(name for name, limit_s in self._limits_s.items() if service_s > limit_s)
            self._answered += 1
            self._batch_sizes += answer.batch_size
            for stage, ms in answer.timings_ms.items():
                self._stages_ms[stage] += ms
            second = int(request.scheduled_s - opened_s)
            self._issued_by[second] += 1
            self._latency_s_by[second] += latency_s
            if self._answers is not None:
                self._answers.add(request.photo, answer)
            if self._requests is not None:
                self._requests.add(request.scheduled_s, request.sent_s, ended.answered_s, request.photo)

    def _fail(self, request: Request, answered_s: float | None, reason: str) -> None:
        self._errors[reason] += 1
        if self._requests is not None:
            self._requests.add(request.scheduled_s, request.sent_s, answered_s, request.photo, reason)

    def _sent(self, request: Request) -> None:
        self._issued += 1
        self._lateness.record_value(min(_microseconds(request.sent_s - request.scheduled_s), LONGEST_S * 10**6))


def _microseconds(seconds: float) -> int:
    return max(1, math.floor(seconds * 1e6 + 0.5))
