"""What one process of the load generator counted, and the sum of several: counts and histograms add up."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

from hdrh.histogram import HdrHistogram
from pydantic import Field

from detbench.results.record import Record

Number = TypeVar("Number", int, float)

# 1 µs to one hour at three significant digits: percentiles are right to within 0.1 %.
LONGEST_S = 3600
_DIGITS = 3


def new_histogram() -> HdrHistogram:
    """An empty histogram of microseconds up to an hour."""
    return HdrHistogram(1, LONGEST_S * 10**6, _DIGITS)


class Tally(Record):
    """Counts of the requests that were issued in the window, unless a field says otherwise.

    Issued means scheduled in an open loop, sent in a closed one. Times are of CLOCK_MONOTONIC, which all processes of a
    machine share. Histograms are of microseconds, base64 of their V2 encoding. Lists have an entry for each second
    since the window opened, up to the last one that is not 0.
    """

    opened_s: float
    closes_s: float
    last_answer_s: float = Field(description="the last answer within the window, good or bad; `opened_s` where none is")
    issued: int
    answered: int
    dropped: int
    errors: dict[str, int] = Field(description="reason to count")
    answered_within: int = Field(description="good answers within the window, whenever they were issued")
    answered_by_replica: dict[str, int] = Field(description="of those in `answered_within`; empty without a cluster")
    latency: str = Field(description="histogram of the answered ones")
    service: str = Field(description="histogram of the answered ones")
    lateness: str = Field(description="histogram of the sent ones")
    stages_ms: dict[str, float] = Field(description="sums over the answered ones")
    batch_sizes: int = Field(description="sum over the answered ones")
    answered_by_second: list[int] = Field(description="of those in `answered_within`")
    issued_by_second: list[int] = Field(description="of the answered ones, by the time when they were issued")
    latency_s_by_second: list[float] = Field(description="sums over the same")
    cpu_percent: list[float] = Field(description="of each process during the window; 100 is one core")

    @property
    def failed(self) -> int:
        """Requests that were sent and not answered well."""
        return sum(self.errors.values())


def merged(tallies: Sequence[Tally]) -> Tally:
    """The sum of the tallies of processes that had one window."""
    return Tally(
        opened_s=tallies[0].opened_s,
        closes_s=tallies[0].closes_s,
        last_answer_s=max(each.last_answer_s for each in tallies),
        issued=sum(each.issued for each in tallies),
        answered=sum(each.answered for each in tallies),
        dropped=sum(each.dropped for each in tallies),
        errors=summed(each.errors for each in tallies),
        answered_within=sum(each.answered_within for each in tallies),
        answered_by_replica=summed(each.answered_by_replica for each in tallies),
        latency=added(each.latency for each in tallies),
        service=added(each.service for each in tallies),
        lateness=added(each.lateness for each in tallies),
        stages_ms=summed(each.stages_ms for each in tallies),
        batch_sizes=sum(each.batch_sizes for each in tallies),
        answered_by_second=_by_second([each.answered_by_second for each in tallies], 0),
        issued_by_second=_by_second([each.issued_by_second for each in tallies], 0),
        latency_s_by_second=_by_second([each.latency_s_by_second for each in tallies], 0.0),
        cpu_percent=[percent for each in tallies for percent in each.cpu_percent],
    )


def summed(parts: Iterable[dict[str, Number]]) -> dict[str, Number]:
    """Sums by key."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def added(encoded: Iterable[str]) -> str:
    """The sum of encoded histograms, encoded."""
    total = new_histogram()
    for each in encoded:
        total.decode_and_add(each)
    return str(total.encode().decode())


def _by_second(parts: Sequence[Sequence[Number]], nothing: Number) -> list[Number]:
    return [sum(second, start=nothing) for second in zip_longest(*parts, fillvalue=nothing)]
