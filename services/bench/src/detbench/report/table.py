"""The table, for a terminal and as Markdown."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from detbench.api.schemas import ModelWeights
from detbench.report.answer import answer, ceiling
from detbench.report.output_error import output_error_columns, output_error_rows
from detbench.report.rows import (
    IMPLEMENTATION_COLUMNS,
    Column,
    columns_of,
    doubt_lines,
    ground_truth_notes,
    implementation_rows,
    rows_of,
    uncertain_line,
)
from detbench.report.scaling import COLUMNS as SCALING_COLUMNS
from detbench.report.scaling import scaling_rows
from detbench.results.quality import Comparison
from detbench.results.sweep import Environment, Settings, Sweep


def terminal_table(sweep: Sweep) -> Table:
    """The table for a terminal; what failed, and what is or may be wrong, stands out."""
    settings = sweep.settings
    title = f"{settings.model_set} on {sweep.environment.device_name}, {_duration(settings)} each"
    rows, columns = rows_of(sweep), columns_of(sweep)
    styles = ["red" if not r.run.measured else "" if r.right and r.run.verdict == "valid" else "yellow" for r in rows]
    return table_of(title, columns, [row.cells(columns) for row in rows], styles)


def implementations_table(sweep: Sweep) -> Table:
    """What the implementations are, and what loading them took, for a terminal."""
    return table_of("Implementations", IMPLEMENTATION_COLUMNS, implementation_rows(sweep))


def scaling_table(sweep: Sweep) -> Table | None:
    """What more replicas are worth, for a terminal; None where no cluster was started."""
    rows = scaling_rows(sweep, rows_of(sweep))
    return table_of("Scaling", SCALING_COLUMNS, rows) if rows else None


def output_error_table(comparisons: Sequence[Comparison]) -> Table:
    """Output error of every model, for a terminal; what is not the reference's answers stands out."""
    rows = output_error_rows(comparisons)
    other = {comparison.implementation for comparison in comparisons if not comparison.gate.passed}
    styles = ["yellow" if cells[0] in other else "" for cells in rows]
    return table_of("Output error against the reference", output_error_columns(comparisons), rows, styles)


def table_of(
    title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], styles: Sequence[str] | None = None
) -> Table:
    """A table for a terminal, in the form that all have; `styles` has rich's style of each row."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        heading, wraps = column.heading.replace(" ", "\n"), column.heading == "step"
        table.add_column(heading, justify="right" if column.numeric else "left", no_wrap=not wraps)
    for number, cells in enumerate(rows):
        table.add_row(*(Text(cell, styles[number] if styles else "") for cell in cells))
    return table


def markdown_table(sweep: Sweep) -> str:
    """The tables in Markdown, with what the machine and the weights are above them."""
    settings, rows, columns = sweep.settings, rows_of(sweep), columns_of(sweep)
    uncertain = uncertain_line(rows, columns)
    lines = [
        f"Model set {settings.model_set}, {settings.images} images of {settings.dataset}, "
        f"{_duration(settings)} a run, {measured_on(sweep.environment, sweep.weights, sweep.started)}",
        "",
        " ".join(filter(None, (answer(rows, settings.slo), ceiling(rows)))),
        "",
        *markdown_lines(columns, [row.cells(columns) for row in rows]),
        "",
        *([uncertain, ""] if uncertain else []),
        *([*(f"- {line}" for line in doubts), ""] if (doubts := doubt_lines(rows)) else []),
        *([*markdown_lines(SCALING_COLUMNS, scaling), ""] if (scaling := scaling_rows(sweep, rows)) else []),
        *markdown_lines(IMPLEMENTATION_COLUMNS, implementation_rows(sweep)),
        *output_error_lines(sweep.comparisons),
    ]
    reasons = [f"- {run.deployment}, {run.offered}: {run.reason.splitlines()[0]}" for run in sweep.runs if run.reason]
    reasons += [f"- {note}" for note in ground_truth_notes(sweep.comparisons)]
    return "\n".join([*lines, *(["", *reasons] if reasons else []), ""])


def output_error_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """The table of output error in Markdown, below an empty line; nothing where nothing was compared."""
    if not comparisons:
        return []
    return ["", *markdown_lines(output_error_columns(comparisons), output_error_rows(comparisons))]


def measured_on(environment: Environment, weights: Sequence[ModelWeights], started: datetime) -> str:
    """The end of the sentence above a table: the machine, when, and the weights."""
    sources = ", ".join(f"{model.model_name} {model.source}" for model in weights)
    day = f"{started:%Y-%m-%d %H:%M} UTC"
    return f"on {environment.device_name} ({environment.device}), {day}. Weights: {sources}."


def markdown_lines(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown, a line each."""
    return [
        _line(column.heading for column in columns),
        _line("---:" if column.numeric else "---" for column in columns),
        *map(_line, rows),
    ]


def _duration(settings: Settings) -> str:
    rounds = f"{settings.repeats} rounds of " if settings.repeats > 1 else ""
    return f"{rounds}{settings.duration_s:g} s"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
