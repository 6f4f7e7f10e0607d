"""The table, for a terminal and as Markdown."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from detbench.report.rows import COLUMNS, rows_of
from detbench.results import Sweep


def terminal_table(sweep: Sweep) -> Table:
    """The table for a terminal; what failed and what is wrong stands out."""
    settings = sweep.settings
    table = Table(
        title=f"{settings.model_set} on {sweep.environment.device_name}, {settings.duration_s:g} s each",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in COLUMNS:
        table.add_column(column.heading.replace(" ", "\n"), justify="right" if column.numeric else "left", no_wrap=True)
    for row in rows_of(sweep):
        style = "red" if row.run.status != "ok" else "yellow" if row.wrong else ""
        table.add_row(*(Text(cell, style) for cell in row.cells()))
    return table


def markdown_table(sweep: Sweep) -> str:
    """The table in Markdown, with what the machine and the weights are above it."""
    settings, environment = sweep.settings, sweep.environment
    sources = ", ".join(f"{model.model_name} {model.source}" for model in sweep.weights)
    day = f"{sweep.started:%Y-%m-%d %H:%M} UTC"
    lines = [
        f"Model set {settings.model_set}, {settings.images} images of {settings.dataset}, "
        f"{settings.duration_s:g} s a run, on {environment.device_name} ({environment.device}), {day}. "
        f"Weights: {sources}.",
        "",
        _line(column.heading for column in COLUMNS),
        _line("---:" if column.numeric else "---" for column in COLUMNS),
        *(_line(row.cells()) for row in rows_of(sweep)),
    ]
    reasons = [
        f"- {run.implementation}, {run.users} users: {run.reason.splitlines()[0]}" for run in sweep.runs if run.reason
    ]
    return "\n".join([*lines, *(["", *reasons] if reasons else []), ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
