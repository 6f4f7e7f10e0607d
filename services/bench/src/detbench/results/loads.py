"""What a load offers, the limits that are set to it, and what the load generator measured."""

import math
from typing import Annotated, Literal

from pydantic import Field

from detbench.results.record import Record
from detbench.statistics.percentiles import Percentile


class ClosedLoop(Record):
    """Users that each send the next photo as soon as the last one is answered. `str()` is for a person to read."""

    loop: Literal["closed"] = "closed"
    users: int

    def __str__(self) -> str:
        return "1 user" if self.users == 1 else f"{self.users} users"


class OpenLoop(Record):
    """Requests that are sent at their times, whatever is answered. `str()` is the schedule in words.

    The fields from `rate` to `seed` are those of `detbench.load.schedules.schedule_of`, which makes the schedule; slot
    number n carries the photo that `photo_of(n, photos, seed)` says.
    """

    loop: Literal["open"] = "open"
    schedule: str = Field(description="in words: its rate and its arrivals")
    rate: float | None = Field(default=None, description="requests per second")
    arrivals: str | None = Field(default=None, description="constant, poisson or gamma; None: poisson, or a trace's")
    burstiness: float | None = None
    steps: str | None = Field(default=None, description='such as "10s:5,10s:20"')
    trace: str | None = Field(default=None, description="path of a file of arrival times")
    seed: int = 0
    max_in_flight: int = Field(description="requests without an answer at most; a slot beyond is dropped")

    @property
    def steady(self) -> bool:
        """Whether the rate stays the same."""
        return self.steps is None and self.trace is None

    def __str__(self) -> str:
        return self.schedule


Offered = Annotated[ClosedLoop | OpenLoop, Field(discriminator="loop")]


class Objective(Record):
    """A limit that the user sets, part of a service level objective (SLO). `str()` is for a person to read."""

    figure: Literal["p50", "p90", "p99", "p99.9", "max", "errors", "memory"]
    limit: float = Field(description="ms of a latency; of errors their share, from 0 to 1; MB of memory at its peak")

    @property
    def is_latency(self) -> bool:
        """Whether it limits a latency, and is in ms."""
        return self.figure not in ("errors", "memory")

    def __str__(self) -> str:
        return f"{self.figure} ≤ {self.text(self.limit)}"

    def text(self, value: float) -> str:
        """A value of the figure with its unit."""
        if math.isinf(value):
            return "∞"
        match self.figure:
            case "errors":
                return f"{100 * value:.3g} %"
            case "memory":
                return f"{value:,.0f} MB"
            case _:
                return f"{value:,.4g} ms" if value < 1e4 else f"{value:,.0f} ms"


class Miss(Record):
    """A limit that a run does not hold."""

    objective: Objective
    seen: float | None = Field(description="in the unit of the limit; None where nothing was measured")

    def __str__(self) -> str:
        seen = "not measured" if self.seen is None else self.objective.text(self.seen)
        return f"{self.objective.figure} {seen}"


class Times(Record):
    """Client-side times of the requests of one run, in ms. One that failed took infinitely long.

    The percentiles are from the histogram, whose resolution is 0.1 %.
    """

    mean_ms: float | None = Field(description="of those that were answered; None where none was")
    p50: Percentile
    p90: Percentile
    p99: Percentile
    p99_9: Percentile
    max_ms: float = Field(description="infinite where a request failed")
    histogram: str = Field(description="HdrHistogram of the answered ones, in microseconds, base64 of its V2 encoding")

    def percentiles(self) -> dict[str, Percentile]:
        """By name: p50, p90, p99 and p99.9."""
        return {"p50": self.p50, "p90": self.p90, "p99": self.p99, "p99.9": self.p99_9}


class Lateness(Record):
    """How long after their times the requests of an open loop were sent, in ms."""

    p50_ms: float
    p99_ms: float
    max_ms: float


class Series(Record):
    """The run by whole seconds since the window opened; the last second may be a part of one."""

    answered: list[int] = Field(description="successful answers that came in each second")
    issued: list[int] = Field(description="requests of each second that were answered, whenever that was")
    latency_mean_ms: list[float | None] = Field(description="mean latency of those; None where there is none")


class Load(Record):
    """What the load generator measured. All but `rps` is of the requests that were issued in the window.

    Issued means scheduled in an open loop, sent in a closed one. issued = answered + failed + dropped.
    """

    window_s: float = Field(description="what `rps` is counted in; a closed loop's ends with its last answer")
    issued: int
    answered: int = Field(description="successfully, however late")
    failed: int = Field(description="for any reason, no answer among them")
    dropped: int = Field(description="scheduled and not sent: no sender was idle")
    offered_rps: float | None = Field(description="issued requests per second; None in a closed loop")
    rps: float = Field(description="successful answers within the window per second")
    replicas_rps: dict[str, float] = Field(
        default_factory=dict, description="the same of each replica of a cluster, by name; empty without a cluster"
    )
    latency: Times | None = Field(
        description="open loop: from the scheduled time to the answer, dropped slots being failures; closed loop: from "
        "sending to the answer; None where nothing was issued"
    )
    service: Times | None = Field(description="from sending to the answer, of what was sent")
    lateness: Lateness | None = Field(description="None in a closed loop, and where nothing was sent")
    stages_ms: dict[str, float] = Field(description="mean of each server-side stage, from the responses' timings_ms")
    batch_size_mean: float | None
    errors: dict[str, int] = Field(description="reason to count")
    series: Series
    generator_cpu_percent: list[float] = Field(description="CPU of each process of the load generator; 100 is one core")

    @property
    def not_model_share(self) -> float | None:
        """Share of the server's time for a request, the wait for the device left out, that its models do not take."""
        whole_ms = sum(ms for stage, ms in self.stages_ms.items() if stage != "queue")
        if not whole_ms:
            return None
        return 1 - (self.stages_ms.get("forward", 0.0) + self.stages_ms.get("postprocess", 0.0)) / whole_ms
