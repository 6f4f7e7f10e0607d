"""Results on the terminal that the subcommands print to."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from detbench.report import capacity
from detbench.report.ablation import comparisons_of, notes_of, terminal_tables
from detbench.report.answer import answer, ceiling
from detbench.report.rows import columns_of, doubt_lines, ground_truth_notes, rows_of, uncertain_line
from detbench.report.table import (
    implementations_table,
    output_error_table,
    scaling_table,
    table_of,
    terminal_table,
)
from detbench.report.versus import COLUMNS, advice, differences
from detbench.results.ablation import Ablation
from detbench.results.capacity import Capacities
from detbench.results.quality import Comparison
from detbench.results.sweep import Sweep

_WIDEST = 400
_STYLES = {"better": "green", "worse": "red", "cannot tell": "yellow"}


def print_tables(*tables: Table) -> None:
    """Print tables at the width that they need: a narrow terminal had better wrap a line than cut names and figures."""
    console = Console()
    for table in tables:
        needed = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
        Console(width=max(console.width, needed)).print(table)


def print_sweep(sweep: Sweep) -> None:
    """Print the tables of a sweep, and its answer."""
    rows = rows_of(sweep)
    print_tables(terminal_table(sweep))
    if uncertain := uncertain_line(rows, columns_of(sweep)):
        Console().print(f"{uncertain}\n", markup=False, highlight=False, soft_wrap=True)
    if doubts := doubt_lines(rows):
        _print_lines([*doubts, ""])
    if scaling := scaling_table(sweep):
        print_tables(scaling)
    print_tables(implementations_table(sweep))
    if sweep.comparisons:
        print_tables(output_error_table(sweep.comparisons))
    print_notes(sweep.comparisons)
    _print_lines(filter(None, (answer(rows, sweep.settings.slo), ceiling(rows))))


def print_ablation(ablation: Ablation) -> None:
    """Print the tables of an ablation."""
    comparisons = comparisons_of(ablation)
    print_tables(*terminal_tables(ablation))
    if comparisons:
        print_tables(output_error_table(comparisons))
    _print_lines(notes_of(ablation))


def print_capacities(capacities: Capacities) -> None:
    """Print the table of capacities, and the answer."""
    print_tables(capacity.terminal_table(capacities))
    _print_lines([*capacity.notes_of(capacities), capacity.answer_of(capacities)])


def print_differences(a: Sweep, b: Sweep, other_machine: bool) -> None:
    """Print which figures differ between two sweeps.

    Raises:
        DetbenchError: see `detbench.report.versus.differences`.
    """
    found = differences(a, b, other_machine)
    title = f"B ({b.started:%Y-%m-%d %H:%M}) against A ({a.started:%Y-%m-%d %H:%M}), {a.settings.model_set}"
    styles = [_STYLES.get(each.verdict, "") for each in found]
    print_tables(table_of(title, COLUMNS, [each.cells() for each in found], styles))
    _print_lines([line] if (line := advice(found)) else [])


def print_notes(comparisons: Sequence[Comparison]) -> None:
    """Print why there is no mAP, and what does not count in it, a line each."""
    _print_lines(ground_truth_notes(comparisons))


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
