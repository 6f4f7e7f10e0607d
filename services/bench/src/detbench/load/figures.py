"""From what the load generator counted to the figures of a run."""

import math
from collections.abc import Iterable, Sequence

from hdrh.histogram import HdrHistogram

from detbench.load.tally import Tally, added, summed
from detbench.results.loads import ClosedLoop, Lateness, Load, OpenLoop, Series, Times
from detbench.statistics.percentiles import histogram_percentiles


def load_of(tally: Tally, offered: ClosedLoop | OpenLoop) -> Load:
    """The figures of one run.

    Throughput is what was answered within the window over its length. In an open loop that is the time for which
    requests were issued; in a closed loop it ends with the last answer: it began with one, and n answers in the time
    between n + 1 of them are the rate without bias, where a fixed length has a bias of up to one answer.
    """
    is_open = isinstance(offered, OpenLoop)
    window_s = (tally.closes_s if is_open else tally.last_answer_s) - tally.opened_s
    return Load(
        window_s=window_s,
        issued=tally.issued,
        answered=tally.answered,
        failed=tally.failed,
        dropped=tally.dropped,
        offered_rps=_rate(tally.issued, window_s) if is_open else None,
        rps=_rate(tally.answered_within, window_s),
        replicas_rps={name: _rate(count, window_s) for name, count in sorted(tally.answered_by_replica.items())},
        latency=times_of(tally.latency, tally.failed + tally.dropped),
        service=times_of(tally.service, tally.failed),
        lateness=_lateness(tally) if is_open and tally.issued > tally.dropped else None,
        stages_ms={stage: total / tally.answered for stage, total in tally.stages_ms.items()},
        batch_size_mean=tally.batch_sizes / tally.answered if tally.answered else None,
        errors=tally.errors,
        series=_series(tally),
        generator_cpu_percent=tally.cpu_percent,
    )


def together(loads: Sequence[Load]) -> Load:
    """Several loads as one: counts and histograms add up, of lateness and the generator's CPU the worst counts."""
    window_s = sum(load.window_s for load in loads)
    answered = sum(load.answered for load in loads)
    failed, dropped = sum(load.failed for load in loads), sum(load.dropped for load in loads)
    offered = [load.offered_rps * load.window_s for load in loads if load.offered_rps is not None]
    batches = [load.batch_size_mean * load.answered for load in loads if load.batch_size_mean is not None]
    stages = summed({stage: ms * load.answered for stage, ms in load.stages_ms.items()} for load in loads)
    return Load(
        window_s=window_s,
        issued=sum(load.issued for load in loads),
        answered=answered,
        failed=failed,
        dropped=dropped,
        offered_rps=sum(offered) / window_s if offered and window_s else None,
        rps=sum(load.rps * load.window_s for load in loads) / window_s if window_s else 0.0,
        replicas_rps=_by_replica(loads),
        latency=_times((load.latency for load in loads), failed + dropped),
        service=_times((load.service for load in loads), failed),
        lateness=_worst([load.lateness for load in loads if load.lateness]),
        stages_ms={stage: total / answered for stage, total in stages.items()} if answered else {},
        batch_size_mean=sum(batches) / answered if answered else None,
        errors=summed(load.errors for load in loads),
        series=_one_after_the_other(loads),
        generator_cpu_percent=[
            max(each) for each in zip(*(load.generator_cpu_percent for load in loads), strict=False)
        ],
    )


def _by_replica(loads: Sequence[Load]) -> dict[str, float]:
    """The rate of each replica over the loads that it was there for: each round has a cluster of its own."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for load in loads for name in load.replicas_rps):
        own = [load for load in loads if name in load.replicas_rps]
        answered = sum(load.replicas_rps[name] * load.window_s for load in own)
        found[name] = _rate(answered, sum(load.window_s for load in own))
    return found


def _one_after_the_other(loads: Sequence[Load]) -> Series:
    """The series of several loads, each of as many seconds as it took, to the nearest whole one."""
    answered: list[int] = []
    issued: list[int] = []
    means_ms: list[float | None] = []
    for load in loads:
        seconds = max(1, round(load.window_s))
        for counts, own in ((answered, load.series.answered), (issued, load.series.issued)):
            whole = [*own[:seconds], *[0] * (seconds - len(own))]
            whole[-1] += sum(own[seconds:])
            counts += whole
        own_ms = load.series.latency_mean_ms[:seconds]
        means_ms += [*own_ms, *[None] * (seconds - len(own_ms))]
    return Series(answered=answered, issued=issued, latency_mean_ms=means_ms)


def _rate(count: float, window_s: float) -> float:
    return count / window_s if window_s > 0 else 0.0


def times_of(encoded: str, failures: int) -> Times | None:
    """Percentiles of a histogram, see `Times`, and of requests that failed; None where there is neither."""
    histogram = HdrHistogram.decode(encoded)
    answered = histogram.get_total_count()
    if answered + failures == 0:
        return None
    p50, p90, p99, p99_9 = histogram_percentiles(histogram, failures)
    return Times(
        mean_ms=histogram.get_mean_value() / 1e3 if answered else None,
        p50=p50,
        p90=p90,
        p99=p99,
        p99_9=p99_9,
        max_ms=math.inf if failures else histogram.get_max_value() / 1e3,
        histogram=encoded,
    )


def _lateness(tally: Tally) -> Lateness:
    histogram = HdrHistogram.decode(tally.lateness)
    p50, _, p99, _ = histogram_percentiles(histogram)
    return Lateness(p50_ms=p50.value_ms, p99_ms=p99.value_ms, max_ms=histogram.get_max_value() / 1e3)


def _series(tally: Tally) -> Series:
    return Series(
        answered=tally.answered_by_second,
        issued=tally.issued_by_second,
        latency_mean_ms=[
            1e3 * total_s / count if count else None
            for total_s, count in zip(tally.latency_s_by_second, tally.issued_by_second, strict=True)
        ],
    )


def _times(rounds: Iterable[Times | None], failures: int) -> Times | None:
    return times_of(added(times.histogram for times in rounds if times), failures)


def _worst(rounds: Sequence[Lateness]) -> Lateness | None:
    if not rounds:
        return None
    return Lateness(**{name: max(getattr(each, name) for each in rounds) for name in Lateness.model_fields})
