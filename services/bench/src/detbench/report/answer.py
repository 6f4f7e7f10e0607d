"""The sentences that a report is opened for."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from detbench.report.rows import Row, duration
from detbench.results.loads import Objective, OpenLoop
from detbench.results.sweep import BASELINE, CEILING, Memory
from detbench.statistics.ratios import Ratio


def answer(rows: Sequence[Row], slo: Sequence[Objective] = ()) -> str:
    """Which implementation is fastest of those that are right, or claim to be, and what is wrong with faster ones.

    What was not compared and does not claim the reference's answers never is the fastest: it may answer anything. Nor
    is what misses a limit of `slo`, or the ceiling, which runs no model.
    """
    measured = [(row.rps, row) for row in rows if row.rps is not None and row.run.implementation != CEILING]
    right = [(rps, row) for rps, row in measured if row.right]
    if not right:
        return f"Nothing was measured whose answers are right{_others(measured, ': ')}."
    within = [(rps, row) for rps, row in right if not row.run.missed]
    if not within:
        return f"Nothing whose answers are right holds {limits(slo)}{_misses(row for _, row in right)}."
    holding = f" and holds {limits(slo)}" if slo else ""
    if isinstance(within[0][1].run.offered, OpenLoop):
        return _soonest([row for _, row in within], holding)
    rps, row = max(within, key=lambda each: each[0])
    speedup = row.speedup if row.run.implementation != BASELINE else None
    most = (
        f"{row.run.deployment} serves the most: {rps:.3g} images per second with {row.run.offered}"
        + (f", {_times(speedup)} baseline" if speedup is not None else "")
        + memory_clause(row.run.memory)
    )
    others = _others([each for each in measured if each[0] > rps and not each[1].right], ". ")
    return f"{most}. {_checked(row)}{holding}{others}.{_invalid(row)}"


def limits(slo: Sequence[Objective]) -> str:
    """The limits in words, such as "p99 ≤ 200 ms and errors ≤ 0.1 %"."""
    return " and ".join(map(str, slo))


def ceiling(rows: Sequence[Row]) -> str:
    """What server and load test do without a model, which limits every figure; empty where it was not measured."""
    best = max((row.rps for row in rows if row.rps is not None and row.run.implementation == CEILING), default=None)
    return "" if best is None else f"The ceiling: without a model ({CEILING}) server and load test do {best:.3g}."


def memory_clause(memory: Memory | None) -> str:
    """What it costs in memory, as the end of a sentence; empty where that is not known."""
    if memory is None or memory.peak_mb is None:
        return ""
    above = memory.above_empty_mb
    return f", with {memory.peak_mb:,.0f} MB at its peak" + (
        f", {above:,.0f} MB above an empty server" if above is not None else ""
    )


def verdicts(rows: Sequence[Row]) -> str:
    """How many of the runs are valid."""
    counts = Counter(row.run.verdict.replace("_", " ") for row in rows)
    bad = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if verdict != "valid")
    return f"{counts['valid']} of {len(rows)} runs are valid" + (f"; {bad}." if bad else ".")


def _times(speedup: Ratio) -> str:
    interval = "" if speedup.low is None or speedup.high is None else f" ({speedup.low:.2f} to {speedup.high:.2f})"
    return f"{speedup.value:.2f}{interval} times"


def _soonest(rows: Sequence[Row], holding: str) -> str:
    """Of an open loop, which offers the same to all: who answers soonest, by the highest percentile that is certain."""
    load = str(rows[0].run.offered)
    for name in ("p99", "p90", "p50"):
        found = [(each, row) for row in rows if (each := _certain(row, name)) is not None]
        if len(found) == len(rows):
            ms, row = min(found, key=lambda each: each[0])
            took = "more than was waited for" if math.isinf(ms) else f"{duration(ms)} ms"
            most = f"{row.run.deployment} answers soonest at {load}: {name} {took}"
            return f"{most}{memory_clause(row.run.memory)}. {_checked(row)}{holding}.{_invalid(row)}"
    return f"At {load} no percentile is certain: too few requests. Raise --duration, or give --until p99."


def _certain(row: Row, name: str) -> float | None:
    latency = row.run.load.latency if row.run.load else None
    found = latency.percentiles()[name] if latency else None
    return found.value_ms if found is not None and found.certified else None


def _checked(row: Row) -> str:
    if row.comparison is None:
        return "It was not compared with the reference"
    under_load = f" ({row.run.audit} under load)" if row.run.audit else ""
    return f"It gives the reference's answers{under_load}"


def _misses(rows: Iterable[Row]) -> str:
    """What each implementation misses where it is best."""
    best = {row.run.implementation: row for row in sorted(rows, key=lambda row: row.rps or 0.0)}
    said = [f"{row.run.deployment}, {row.run.offered}: {', '.join(map(str, row.run.missed))}" for row in best.values()]
    return ": " + "; ".join(said) if said else ""


def _invalid(row: Row) -> str:
    """That the run is invalid, and the first reason; empty where it is valid."""
    reasons = [warning.message for warning in row.run.warnings if warning.invalidates]
    return f" But this run is invalid: {reasons[0]}." if reasons else ""


def _others(measured: Sequence[tuple[float, Row]], before: str) -> str:
    """What is to be said of each that is not right, at its best rate; nothing where there is none."""
    best: dict[str, tuple[float, Row]] = {}
    for rps, row in sorted(measured, key=lambda each: each[0]):
        best[row.run.implementation] = rps, row
    said = [f"{row.run.deployment} does {rps:.3g}, {_doubt(row)}" for rps, row in best.values() if not row.right]
    return before + "; ".join(said) if said else ""


def _doubt(row: Row) -> str:
    audit = row.run.audit
    if row.gate != "failed" and audit is not None and audit.verdict == "failed":
        return f"and its answers under load are wrong: {audit} are right"
    match row.gate:
        case "failed":
            return "and its answers are wrong"
        case "tolerated":
            return "and its answers are near the reference's, not the same"
        case _:
            return "but does not claim the reference's answers and was not compared: add --compare-outputs"
