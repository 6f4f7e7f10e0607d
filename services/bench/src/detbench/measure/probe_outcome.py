"""What a probe says of its rate: that it passed, that it failed, or nothing; and while it runs, that it cannot pass.

A failure must be the server's. Where the load generator was busy or late, or the machine's cores were taken away, a
probe that holds every limit has passed in spite of that, and one that does not says nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from detbench.results.capacity import Outcome
from detbench.results.loads import Load, Objective
from detbench.results.sweep import Run
from detbench.slo import missed
from detbench.statistics.percentiles import answers_needed
from detbench.verdict import BUSY_CPU_PERCENT, MOST_FAILURES

# Reasons of a verdict that are not the server's, whatever it answered.
_OF_THE_MACHINE = ("generator-busy", "cores-taken")
_SENT_LATE = "sent-late"

# Where a limit is of no percentile (memory, or the slowest request).
_SOME_RANK = 90.0
# A latency that drifts up by less is no queue that grows: the search is not that precise.
_MOST_BEHIND = 0.01
# Of the number of requests in flight, above which it is not by chance.
_DEVIATIONS = 3.0
# p99.9 is as far as percentiles are told.
_HIGHEST_RANK = 99.9


def requests_needed(slo: Sequence[Objective]) -> int:
    """Requests that certify every percentile with a limit; of errors the percentile that they push to infinity."""
    ranks = [_rank_of(each) for each in slo if each.is_latency and each.figure != "max"]
    ranks += [min(100 * (1 - each.limit), _HIGHEST_RANK) for each in slo if each.figure == "errors"]
    return answers_needed(max((rank for rank in ranks if rank > 0), default=_SOME_RANK))


def outcome_of(run: Run, slo: Sequence[Objective]) -> tuple[Outcome, str]:
    """Whether the rate of a probe that has ended passed, and the reason where not.

    Args:
        run: judged by `detbench.verdict.judged`.
    """
    load = run.load
    assert load is not None
    if load.issued == 0:
        return "unusable", "no request arrived in so short a time"
    if run.verdict == "failed":
        return "failed", run.reason or ""
    doubts = {each.code: each for each in run.warnings if each.invalidates}
    overload = [doubts["dropped"].message] if "dropped" in doubts else []
    if "rate-not-achieved" in doubts and _unanswered(load) > _on_its_way(load, slo):
        overload.append(doubts["rate-not-achieved"].message)
    if "latency-drifts" in doubts and _behind(load) > _MOST_BEHIND:
        overload.append(doubts["latency-drifts"].message)
    faults = [*map(str, run.missed), *overload]
    if not faults:
        return "passed", ""
    excuses = [doubts[code].message for code in _OF_THE_MACHINE if code in doubts]
    if (
        _SENT_LATE in doubts
        and not overload
        and not missed(load.model_copy(update={"latency": load.service}), run.memory, slo)
    ):
        excuses.append(doubts[_SENT_LATE].message)
    if excuses:
        return "unusable", f"{faults[0]}, but {excuses[0]}"
    return "failed", "; ".join(faults)


def hopeless(message: Mapping[str, Any], slo: Sequence[Objective], requests: int) -> tuple[Outcome, str] | None:
    """The outcome of a probe that cannot pass any more, and the reason; None where it still can.

    By Little's law more requests in flight than the rate times a limit are requests older than the limit, which count
    as late here without having been answered.

    Args:
        message: of the load driver, for the limits `slo`; see `detbench.load.driver`.
        requests: that the probe is to send in all.
    """
    if message.get("phase") != "measure":
        return None
    reason = _out_of_reach(message, slo, requests)
    if reason is None:
        return None
    if message["cpu_percent"] > BUSY_CPU_PERCENT:
        return "unusable", f"{reason}, but the load generator used {message['cpu_percent']:.0f} % of a core"
    return "failed", reason


def _out_of_reach(message: Mapping[str, Any], slo: Sequence[Objective], requests: int) -> str | None:
    """Which limit cannot be held any more, and why; None where all can."""
    after = f"out of reach after {message['elapsed_s']:.1f} s"
    for each in slo:
        late = message["late"].get(each.figure, 0)
        # The percentile is the latency of this rank, as detbench.statistics.percentiles counts.
        if each.is_latency and late > requests - math.ceil(round(requests * _rank_of(each) / 100, 6)):
            return f"{each} {after}: {late:,} requests took longer, {message['in_flight']:,} are in flight"
    lost, dropped = message["failed"] + message["dropped"], message["dropped"]
    for each in slo:
        if each.figure == "errors" and lost > each.limit * requests:
            return f"{each} {after}: {lost:,} requests failed or were not sent"
    if dropped > MOST_FAILURES * requests:
        return f"the rate is {after}: {dropped:,} requests were not sent, {message['in_flight']:,} are in flight"
    return None


def _rank_of(objective: Objective) -> float:
    """The percentile, in percent, that a limit of latency is of; 100 is the slowest request."""
    return 100.0 if objective.figure == "max" else float(objective.figure.removeprefix("p"))


def _unanswered(load: Load) -> float:
    """Requests without a good answer at the end of the window."""
    return load.issued - load.rps * load.window_s


def _on_its_way(load: Load, slo: Sequence[Objective]) -> float:
    """Requests that may be in flight at the end of a window in which every limit is held, and one more.

    By Little's law they are at most the rate times the longest limit in the mean; three standard deviations of a
    Poisson number above it are chance.
    """
    longest_s = max((each.limit / 1e3 for each in slo if each.is_latency), default=0.0)
    mean = load.issued / load.window_s * longest_s
    return mean + _DEVIATIONS * math.sqrt(mean) + 1


def _behind(load: Load) -> float:
    """By which share of the load the server falls behind: seconds that latency rises by, for each of the window.

    The rise is twice what lies between the means of the two halves, as of a straight line.
    """
    seconds = list(zip(load.series.latency_mean_ms, load.series.issued, strict=True))
    middle = len(seconds) // 2
    first_ms, second_ms = _mean_ms(seconds[:middle]), _mean_ms(seconds[middle:])
    return 2 * (second_ms - first_ms) / 1e3 / load.window_s


def _mean_ms(seconds: Sequence[tuple[float | None, int]]) -> float:
    requests = sum(count for _, count in seconds)
    return sum((mean_ms or 0.0) * count for mean_ms, count in seconds) / requests if requests else 0.0
