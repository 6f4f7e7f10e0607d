"""The rounds of one implementation under one load, as one run: counts and histograms add up."""

from collections.abc import Iterable, Sequence

from detbench.load.doubts import FEW_REQUESTS, few_requests
from detbench.load.figures import times_of
from detbench.load.tally import added, summed
from detbench.results import Lateness, Load, MeasurementWarning, Run, Series, Times


def pooled(rounds: Sequence[Run]) -> Run:
    """One run of several rounds; it is ok where all of them are.

    Its memory is that of the highest peak, its CPU shares those of the round in which most was stolen.
    """
    if len(rounds) == 1:
        return rounds[0]
    bad = [run for run in rounds if run.status != "ok"]
    measured = [run.load for run in rounds if run.status == "ok" and run.load]
    load = _load(measured) if measured else None
    return rounds[0].model_copy(
        update={
            "round": 1,
            "status": bad[0].status if bad else "ok",
            "reason": f"{len(bad)} of {len(rounds)} rounds: {bad[0].reason}" if bad else None,
            "warnings": _warnings(rounds, load),
            "started": min((run.started for run in rounds if run.started), default=None),
            "ended": max((run.ended for run in rounds if run.ended), default=None),
            "load": load,
            "cpu": max((run.cpu for run in rounds if run.cpu), key=lambda cpu: cpu.steal, default=None),
            "memory": max(
                (run.memory for run in rounds if run.memory), key=lambda memory: memory.peak_mb or 0.0, default=None
            ),
        }
    )


def _warnings(rounds: Sequence[Run], load: Load | None) -> list[MeasurementWarning]:
    """Each doubt once, as the first round that has it says it; whether there are enough requests is of all together."""
    found = {warning.code: warning for run in reversed(rounds) for warning in run.warnings}
    found.pop(FEW_REQUESTS, None)
    return [*found.values(), *(few_requests(load) if load else ())]


def _load(loads: Sequence[Load]) -> Load:
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
        latency=_times((load.latency for load in loads), failed + dropped),
        service=_times((load.service for load in loads), failed),
        lateness=_worst([load.lateness for load in loads if load.lateness]),
        stages_ms={stage: total / answered for stage, total in stages.items()} if answered else {},
        batch_size_mean=sum(batches) / answered if answered else None,
        errors=summed(load.errors for load in loads),
        series=Series(
            answered=[count for load in loads for count in load.series.answered],
            issued=[count for load in loads for count in load.series.issued],
            latency_mean_ms=[mean for load in loads for mean in load.series.latency_mean_ms],
        ),
        generator_cpu_percent=[
            max(each) for each in zip(*(load.generator_cpu_percent for load in loads), strict=False)
        ],
    )


def _times(rounds: Iterable[Times | None], failures: int) -> Times | None:
    return times_of(added(times.histogram for times in rounds if times), failures)


def _worst(rounds: Sequence[Lateness]) -> Lateness | None:
    if not rounds:
        return None
    return Lateness(**{name: max(getattr(each, name) for each in rounds) for name in Lateness.model_fields})
