"""Tables on the terminal that the subcommands print to."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_WIDEST = 400


def print_tables(*tables: Table) -> None:
    """Print tables at the width that they need: a narrow terminal had better wrap a line than cut names and figures."""
    console = Console()
    for table in tables:
        needed = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
        Console(width=max(console.width, needed)).print(table)
