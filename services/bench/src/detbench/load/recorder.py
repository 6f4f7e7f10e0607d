"""Counting the answers of one run, from the moment when the warm-up is over."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from hdrh.histogram import HdrHistogram

from detbench.api.schemas import Inference
from detbench.results import Latency, Load

# 1 µs to one hour at three significant digits: percentiles are right to within 0.1 %.
_HIGHEST_US = 3_600_000_000
_DIGITS = 3


class Recorder:
    """Listens to Locust's `request` event.

    Each user's first answer is warm-up: it may have waited for connections, caches and a queue that was still filling.
    The window opens when every user has had one. It is a closed loop, so from then on answers come at the server's
    rate, and the window ends with an answer: n answers in the time between n + 1 of them is the rate without bias.

    Args:
        users: how many users there are.
        clock: seconds; `time.perf_counter`, or a test's.
    """

    def __init__(self, users: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._users = users
        self._clock = clock
        self._warm: set[int] = set()
        self._opened: float | None = None
        self._closes = float("inf")
        self._last = 0.0
        self._histogram = HdrHistogram(1, _HIGHEST_US, _DIGITS)
        self._requests = 0
        self._errors: Counter[str] = Counter()
        self._stages_ms: defaultdict[str, float] = defaultdict(float)
        self._batch_sizes = 0

    @property
    def warm_users(self) -> int:
        """Users that have had their first answer."""
        return len(self._warm)

    @property
    def opened(self) -> float | None:
        """When the window opened, by the clock; None during the warm-up."""
        return self._opened

    @property
    def requests(self) -> int:
        """Answers in the window so far."""
        return self._requests

    def close_after(self, duration_s: float) -> None:
        """End the window `duration_s` after it opened: answers that come later do not count."""
        if self._opened is None:
            raise ValueError("the window is not open")
        self._closes = self._opened + duration_s

    def on_request(
        self, response_time: float, exception: BaseException | None, context: dict[str, Any], **_: object
    ) -> None:
        """Count one answer; `response_time` is Locust's, in ms."""
        now = self._clock()
        if self._opened is None:
            self._warm.add(context["user"])
            if len(self._warm) == self._users:
                self._opened = self._last = now
            return
        if now > self._closes:
            return
        self._requests += 1
        self._last = now
        if exception is not None:
            self._errors[str(exception)] += 1
            return
        self._histogram.record_value(max(1, round(response_time * 1e3)))
        answer: Inference = context["outcome"]["answer"]
        self._batch_sizes += answer.batch_size
        for stage, ms in answer.timings_ms.items():
            self._stages_ms[stage] += ms

    def load(self, generator_cpu_percent: float) -> Load:
        """What was counted."""
        window_s = self._last - (self._opened or 0.0)
        succeeded = self._requests - self._errors.total()
        return Load(
            window_s=window_s,
            requests=self._requests,
            failures=self._errors.total(),
            rps=succeeded / window_s if window_s > 0 else 0.0,
            latency=self._latency() if succeeded else None,
            stages_ms={stage: total / succeeded for stage, total in self._stages_ms.items()},
            batch_size_mean=self._batch_sizes / succeeded if succeeded else None,
            errors=dict(self._errors),
            histogram=self._histogram.encode().decode(),
            generator_cpu_percent=generator_cpu_percent,
        )

    def _latency(self) -> Latency:
        ms = {name: self._histogram.get_value_at_percentile(rank) / 1e3 for name, rank in _RANKS.items()}
        return Latency(
            mean_ms=self._histogram.get_mean_value() / 1e3, max_ms=self._histogram.get_max_value() / 1e3, **ms
        )


_RANKS = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99}
