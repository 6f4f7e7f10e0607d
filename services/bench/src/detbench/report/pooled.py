"""The rounds of one implementation under one load, as one run: counts and histograms add up."""

from collections.abc import Iterable, Sequence

from detbench.load.figures import together
from detbench.results.loads import Load, Objective
from detbench.results.quality import Audit, AuditedReplica, Gate
from detbench.results.sweep import DeviceUse, MeasurementWarning, Run
from detbench.slo import missed
from detbench.verdict import FEW_REQUESTS, few_requests, verdict_of


def pooled(rounds: Sequence[Run], slo: Sequence[Objective] = ()) -> Run:
    """One run of several rounds; it is valid where all of them are, and misses the limits that it misses as a whole.

    Its memory is that of the highest peak, its CPU shares those of the round in which most was stolen.
    """
    if len(rounds) == 1:
        return rounds[0]
    bad = [run for run in rounds if not run.measured]
    measured = [run.load for run in rounds if run.measured and run.load]
    load = together(measured) if measured else None
    memory = max((run.memory for run in rounds if run.memory), key=lambda memory: memory.peak_mb or 0.0, default=None)
    warnings = _warnings(rounds, load, slo)
    return rounds[0].model_copy(
        update={
            "round": 1,
            "verdict": bad[0].verdict if bad else verdict_of(warnings),
            "reason": f"{len(bad)} of {len(rounds)} rounds: {bad[0].reason}" if bad else None,
            "warnings": warnings,
            "missed": missed(None if bad else load, memory, slo),
            "started": min((run.started for run in rounds if run.started), default=None),
            "ended": max((run.ended for run in rounds if run.ended), default=None),
            "load": load,
            "audit": _audit([run.audit for run in rounds if run.audit]),
            "cpu": max((run.cpu for run in rounds if run.cpu), key=lambda cpu: cpu.steal, default=None),
            "memory": memory,
            "device": _device([run.device for run in rounds if run.device]),
        }
    )


def _warnings(rounds: Sequence[Run], load: Load | None, slo: Sequence[Objective]) -> list[MeasurementWarning]:
    """Each doubt once, as the first round that has it says it; whether there are enough requests is of all together."""
    found = {warning.code: warning for run in reversed(rounds) for warning in run.warnings}
    found.pop(FEW_REQUESTS, None)
    return [*found.values(), *(few_requests(load, slo) if load else ())]


def _audit(rounds: Sequence[Audit]) -> Audit | None:
    """The sums; the gates are passed where those of all rounds are."""
    if not rounds:
        return None
    tolerances = [each.tolerance for each in rounds if each.tolerance is not None]
    return Audit(
        **{name: sum(getattr(each, name) for each in rounds) for name in ("answers", "audited", "distinct", "right")},
        reasons=_each_once(each.reasons for each in rounds),
        replicas={
            name: AuditedReplica(audited=sum(each.audited for each in parts), right=sum(each.right for each in parts))
            for name in dict.fromkeys(name for each in rounds for name in each.replicas)
            if (parts := [each.replicas[name] for each in rounds if name in each.replicas])
        },
        gate=_all([each.gate for each in rounds]),
        tolerance=_all(tolerances) if tolerances else None,
    )


def _all(gates: Sequence[Gate]) -> Gate:
    return Gate(passed=all(gate.passed for gate in gates), reasons=_each_once(gate.reasons for gate in gates))


def _each_once(reasons: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(reason for each in reasons for reason in each))


def _device(rounds: Sequence[DeviceUse]) -> DeviceUse | None:
    """Energy adds up; of clocks and throttling the worst round counts, of power the mean."""
    if not rounds:
        return None
    energies = [each.energy_j for each in rounds if each.energy_j is not None]
    powers = [each.power_w for each in rounds if each.power_w is not None]
    worst = max(rounds, key=lambda each: each.throttled or 0.0)
    return worst.model_copy(
        update={
            "energy_j": sum(energies) if len(energies) == len(rounds) else None,
            "power_w": sum(powers) / len(powers) if powers else None,
        }
    )
