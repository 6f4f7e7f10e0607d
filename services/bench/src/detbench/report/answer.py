"""The sentence that a report is opened for."""

import math
from collections.abc import Sequence

from detbench.report.rows import Row, duration
from detbench.results import BASELINE, Memory, OpenLoop
from detbench.statistics.ratios import Ratio


def answer(rows: Sequence[Row]) -> str:
    """Which implementation is fastest of those that are right, or claim to be, and what is wrong with faster ones.

    What was not compared and does not claim the reference's answers never is the fastest: it may answer anything.
    """
    measured = [(row.rps, row) for row in rows if row.rps is not None]
    right = [(rps, row) for rps, row in measured if row.right]
    if not right:
        return f"Nothing was measured whose answers are right{_others(measured, ': ')}."
    if isinstance(right[0][1].run.offered, OpenLoop):
        return _soonest([row for _, row in right])
    rps, row = max(right, key=lambda each: each[0])
    speedup = row.speedup if row.run.implementation != BASELINE else None
    most = (
        f"{row.run.implementation} serves the most: {rps:.3g} images per second with {row.run.offered}"
        + (f", {_times(speedup)} baseline" if speedup is not None else "")
        + memory_clause(row.run.memory)
    )
    return f"{most}. {_checked(row)}{_others([each for each in measured if each[0] > rps], '. ')}."


def memory_clause(memory: Memory | None) -> str:
    """What it costs in memory, as the end of a sentence; empty where that is not known."""
    if memory is None or memory.peak_mb is None:
        return ""
    above = memory.above_empty_mb
    return f", with {memory.peak_mb:,.0f} MB at its peak" + (
        f", {above:,.0f} MB above an empty server" if above is not None else ""
    )


def _times(speedup: Ratio) -> str:
    interval = "" if speedup.low is None or speedup.high is None else f" ({speedup.low:.2f} to {speedup.high:.2f})"
    return f"{speedup.value:.2f}{interval} times"


def _soonest(rows: Sequence[Row]) -> str:
    """Of an open loop, which offers the same to all: who answers soonest, by the highest percentile that is certain."""
    load = str(rows[0].run.offered)
    for name in ("p99", "p90", "p50"):
        found = [(each, row) for row in rows if (each := _certain(row, name)) is not None]
        if len(found) == len(rows):
            ms, row = min(found, key=lambda each: each[0])
            took = "more than was waited for" if math.isinf(ms) else f"{duration(ms)} ms"
            most = f"{row.run.implementation} answers soonest at {load}: {name} {took}"
            return f"{most}{memory_clause(row.run.memory)}. {_checked(row)}."
    return f"At {load} no percentile is certain: too few requests. Raise --duration."


def _certain(row: Row, name: str) -> float | None:
    latency = row.run.load.latency if row.run.load else None
    found = latency.percentiles()[name] if latency else None
    return found.value_ms if found is not None and found.certified else None


def _checked(row: Row) -> str:
    return "It gives the reference's answers" if row.comparison else "It was not compared with the reference"


def _others(measured: Sequence[tuple[float, Row]], before: str) -> str:
    """What is to be said of each that is not right, at its best rate; nothing where there is none."""
    best: dict[str, tuple[float, Row]] = {}
    for rps, row in sorted(measured, key=lambda each: each[0]):
        best[row.run.implementation] = rps, row
    said = [f"{name} does {rps:.3g}, {_doubt(row)}" for name, (rps, row) in best.items() if not row.right]
    return before + "; ".join(said) if said else ""


def _doubt(row: Row) -> str:
    match row.gate:
        case "failed":
            return "and its answers are wrong"
        case "tolerated":
            return "and its answers are near the reference's, not the same"
        case _:
            return "but does not claim the reference's answers and was not compared: add --compare-outputs"
