"""The table, for a terminal and as Markdown."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from detbench.report.rows import COLUMNS, rows_of
from detbench.results import Sweep


def terminal_table(sweep: Sweep) -> Table:
    """The table for a terminal; what failed and what is wrong stands out."""
    settings = sweep.settings
    table = Table(title=f"{settings.model_set} on {sweep.environment.device_name}, {settings.duration_s:g} s each")
    for column in COLUMNS:
        table.add_column(column.heading, justify="right" if column.numeric else "left")
    for row in rows_of(sweep):
        style = "red" if row.run.status != "ok" else "yellow" if row.wrong else ""
        table.add_row(*(Text(cell, style) for cell in row.cells()))
    return table


def markdown_table(sweep: Sweep) -> str:
    """The table in Markdown, with what the machine and the weights are above it."""
    settings, environment = sweep.settings, sweep.environment
    sources = ", ".join(f"{model.model_name} {model.source}" for model in sweep.weights)
    lines = [
        f"Model set {settings.model_set}, {settings.images} images of {settings.dataset}, {settings.duration_s:g} s a run, "
        f"on {environment.device_name} ({environment.device}), {sweep.started:%Y-%m-%d %H:%M} UTC. Weights: {sources}.",
        "",
        _line(column.heading for column in COLUMNS),
        _line("---:" if column.numeric else "---" for column in COLUMNS),
        *(_line(row.cells()) for row in rows_of(sweep)),
    ]
    reasons = [
        f"- {row.run.implementation}, {row.run.users} users: {_first_line(row.run.reason)}"
        for row in rows_of(sweep)
        if row.run.reason
    ]
    return "\n".join([*lines, *(["", *reasons] if reasons else []), ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _first_line(text: str | None) -> str:
    return (text or "").split("\n", 1)[0]
