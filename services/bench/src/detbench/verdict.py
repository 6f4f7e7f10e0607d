"""The verdict on a run: valid, or invalid with each reason and its remedy; or failed.

Whether a limit of the user's is held is another question, see detbench.slo: a valid run may miss it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from detbench.host import CpuShares
from detbench.results.loads import ClosedLoop, Load, Objective, OpenLoop
from detbench.results.sweep import DeviceUse, MeasurementWarning, Run
from detbench.slo import missed
from detbench.statistics.drift import Trend, latency_trend, rate_trend

FEW_REQUESTS = "few-requests"

BUSY_CPU_PERCENT = 90.0
"""Of a process of the load generator: above it the generator may set the rate, not the server, as Locust warns, too."""

# Of the offered rate, as the contract says.
_ACHIEVED = 0.95
# Lateness is part of an open loop's latency. The generator's own noise on an idle machine is a millisecond.
_LATE_MS = 2.0
_LATE_SHARE = 0.05

# Of the requests, those that may fail or be dropped: beyond it p99 is infinite.
MOST_FAILURES = 0.01

# Of the samples of a GPU, as the steal of a CPU.
_MOST_THROTTLED = 0.05

MOST_STEAL = 0.05
"""Share of the cores that the host may take away before a figure is doubted, as the contract says."""


def judged(run: Run, slo: Sequence[Objective] = ()) -> Run:
    """`run`, whose load was measured, with its verdict, the reasons for it, and the limits that it misses.

    Fewer than half of the requests answered: failed. A doubt that invalidates: invalid. Else valid, doubts or not.
    """
    load = run.load
    assert load is not None
    run = run.model_copy(update={"missed": missed(load, run.memory, slo)})
    if load.answered == 0 or load.failed > load.answered:
        reason = f"{load.answered:,} of {load.issued:,} requests succeeded"
        if load.errors:
            reason += f"; most often: {max(load.errors, key=lambda error: load.errors[error])}"
        return run.model_copy(update={"verdict": "failed", "reason": reason})
    doubts = [*doubts_of(load, run.offered, slo), *stolen(run.cpu), *_throttled(run.device)]
    return run.model_copy(update={"verdict": verdict_of(doubts), "warnings": doubts})


def doubts_of(load: Load, offered: ClosedLoop | OpenLoop, slo: Sequence[Objective] = ()) -> list[MeasurementWarning]:
    """The doubts about `load`, which was to be `offered`, and whose limits `slo` are."""
    found = [*_failures(load), *_generator(load), *few_requests(load, slo)]
    if isinstance(offered, OpenLoop):
        found += [*_not_offered(load, offered), *_late(load)]
    if isinstance(offered, ClosedLoop) or offered.steady:
        found += _drift(load)
    return found


def verdict_of(doubts: Iterable[MeasurementWarning]) -> Literal["valid", "invalid"]:
    """What the doubts about a run that was measured make of it."""
    return "invalid" if any(doubt.invalidates for doubt in doubts) else "valid"


def stolen(cpu: CpuShares | None) -> Iterator[MeasurementWarning]:
    """The doubt that the machine's host took cores away; nothing where it did not, or nobody knows."""
    if cpu is not None and cpu.steal > MOST_STEAL:
        yield MeasurementWarning(
            code="cores-taken",
            message=f"the host of this virtual machine took {cpu.steal:.0%} of the cores away meanwhile",
            remedy="measure again when it is quiet, or on a machine of its own",
            invalidates=True,
        )


def _throttled(device: DeviceUse | None) -> Iterator[MeasurementWarning]:
    if device is not None and device.throttled is not None and device.throttled > _MOST_THROTTLED:
        yield MeasurementWarning(
            code="clocks-lowered",
            message=f"the GPU had lowered its clocks in {device.throttled:.0%} of the samples: "
            f"{', '.join(device.throttle_reasons)}",
            remedy="see to its cooling and its power limit, or lock its clocks (nvidia-smi -lgc) for every run alike",
            invalidates=True,
        )


def _failures(load: Load) -> Iterator[MeasurementWarning]:
    if load.failed:
        reason, count = max(load.errors.items(), key=lambda item: item[1])
        yield MeasurementWarning(
            code="failures",
            message=f"{load.failed:,} of {load.issued:,} requests failed; most often ({count:,}): {reason}",
            remedy="see the server's log; a failure counts as an infinite latency, and in no rate",
            invalidates=load.failed > MOST_FAILURES * load.issued,
        )


def _generator(load: Load) -> Iterator[MeasurementWarning]:
    busiest = max(load.generator_cpu_percent, default=0.0)
    if busiest > BUSY_CPU_PERCENT:
        processes = len(load.generator_cpu_percent)
        which = "the load generator" if processes == 1 else f"a process of the load generator, of {processes},"
        yield MeasurementWarning(
            code="generator-busy",
            message=f"{which} used {busiest:.0f} % of a core: it may be the limit",
            remedy="the server may be faster than shown; raise --processes, or load it from another machine",
            invalidates=True,
        )


def few_requests(load: Load, slo: Sequence[Objective] = ()) -> Iterator[MeasurementWarning]:
    """The doubt that there are too few requests for p99, or for a percentile that the user sets a limit to."""
    if load.latency is None:
        return
    limited = [objective.figure for objective in slo]
    for name, each in load.latency.percentiles().items():
        if (name == "p99" or name in limited) and not each.certified:
            yield MeasurementWarning(
                code=FEW_REQUESTS,
                message=f"{load.issued:,} requests do not certify {name}, which needs {each.needed:,}",
                remedy=f"raise --duration, or give --until {name}; until then {name} may be chance",
                invalidates=name in limited,
            )


def _not_offered(load: Load, offered: OpenLoop) -> Iterator[MeasurementWarning]:
    if load.dropped:
        yield MeasurementWarning(
            code="dropped",
            message=f"{load.dropped:,} of {load.issued:,} requests were not sent: no sender was idle at their time "
            f"({offered.max_in_flight} in all), or the generator was behind",
            remedy="lower the rate to what server and generator can do; raise --max-in-flight where the generator is "
            "idle, --processes where it is busy",
            invalidates=load.dropped > MOST_FAILURES * load.issued,
        )
    if load.offered_rps and load.rps < _ACHIEVED * load.offered_rps:
        yield MeasurementWarning(
            code="rate-not-achieved",
            message=f"{load.rps:.3g} of the {load.offered_rps:.3g} requests/s that were offered were answered in time",
            remedy="the queue grows, and latency with the duration: lower the rate; raise --duration where latency is "
            "a large part of it",
            invalidates=True,
        )


def _late(load: Load) -> Iterator[MeasurementWarning]:
    if load.lateness is None or load.service is None:
        return
    limit_ms = max(_LATE_MS, _LATE_SHARE * load.service.p50.value_ms)
    if load.lateness.p99_ms > limit_ms:
        yield MeasurementWarning(
            code="sent-late",
            message=f"1 of 100 requests was sent {load.lateness.p99_ms:.1f} ms late or more, "
            f"up to {load.lateness.max_ms:.1f} ms",
            remedy="latency counts from the time when a request was to be sent, so this is in it: raise --processes, "
            "or load the server from a machine that is less busy",
            invalidates=True,
        )


def _drift(load: Load) -> Iterator[MeasurementWarning]:
    series = load.series
    answered_s = _spread(series.answered, load.window_s)
    issued_s = _spread(series.issued, load.window_s)
    latencies_ms = [
        mean or 0.0 for mean, count in zip(series.latency_mean_ms, series.issued, strict=True) for _ in range(count)
    ]
    for what, trend in (
        ("throughput", rate_trend(answered_s, load.window_s)),
        ("latency", latency_trend(issued_s, latencies_ms, load.window_s)),
    ):
        if trend is not None and trend.drifting:
            yield _drifting(what, trend)


def _drifting(what: str, trend: Trend) -> MeasurementWarning:
    return MeasurementWarning(
        code=f"{what}-drifts",
        message=f"{what} went {'up' if trend.change > 0 else 'down'} by {abs(trend.change):.0%} of its median from the "
        f"start to the end (p = {trend.p_value:.1g})",
        remedy="raise --duration, or warm up longer (--warmup); look for what heats up, fills up or shares the machine",
        invalidates=True,
    )


def _spread(counts: Sequence[int], window_s: float) -> list[float]:
    """Times within each second, evenly, of so many events in it: bins of other widths than a second need them."""
    return [
        second + (number + 0.5) / count * (window_s - second if second < window_s < second + 1 else 1.0)
        for second, count in enumerate(counts)
        for number in range(count)
    ]
