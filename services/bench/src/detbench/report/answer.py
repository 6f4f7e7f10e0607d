"""The sentence that a report is opened for."""

from collections.abc import Sequence

from detbench.report.rows import Row
from detbench.results import BASELINE, Memory


def answer(rows: Sequence[Row]) -> str:
    """Which implementation is fastest of those that are right, or claim to be, and what is wrong with faster ones.

    What was not compared and does not claim the reference's answers never is the fastest: it may answer anything.
    """
    measured = [(row.rps, row) for row in rows if row.rps is not None]
    right = [(rps, row) for rps, row in measured if row.right]
    if not right:
        return f"Nothing was measured whose answers are right{_others(measured, ': ')}."
    rps, row = max(right, key=lambda each: each[0])
    users = "1 user" if row.run.users == 1 else f"{row.run.users} users"
    speedup = row.speedup if row.run.implementation != BASELINE else None
    most = (
        f"{row.run.implementation} serves the most: {rps:.3g} images per second with {users}"
        + (f", {speedup:.2f} times baseline" if speedup is not None else "")
        + memory_clause(row.run.memory)
    )
    checked = "It gives the reference's answers" if row.comparison else "It was not compared with the reference"
    return f"{most}. {checked}{_others([each for each in measured if each[0] > rps], '. ')}."


def memory_clause(memory: Memory | None) -> str:
    """What it costs in memory, as the end of a sentence; empty where that is not known."""
    if memory is None or memory.peak_mb is None:
        return ""
    above = memory.above_empty_mb
    return f", with {memory.peak_mb:,.0f} MB at its peak" + (
        f", {above:,.0f} MB above an empty server" if above is not None else ""
    )


def _others(measured: Sequence[tuple[float, Row]], before: str) -> str:
    """What is to be said of each that is not right, at its best rate; nothing where there is none."""
    best: dict[str, tuple[float, Row]] = {}
    for rps, row in sorted(measured, key=lambda each: each[0]):
        best[row.run.implementation] = rps, row
    said = [f"{name} does {rps:.3g}, {_doubt(row)}" for name, (rps, row) in best.items()]
    return before + "; ".join(said) if said else ""


def _doubt(row: Row) -> str:
    match row.gate:
        case "failed":
            return "and its answers are wrong"
        case "tolerated":
            return "and its answers are near the reference's, not the same"
        case _:
            return "but does not claim the reference's answers and was not compared: add --compare-outputs"
