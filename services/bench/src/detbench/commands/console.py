"""The terminal that the subcommands print to."""

from rich.console import Console

# The results table; a pipe or a log has no width of its own, and a narrow terminal had better wrap than cut figures.
_TABLE_COLUMNS = 128


def open_console() -> Console:
    """A console that is wide enough for the tables."""
    console = Console()
    return Console(width=max(console.width, _TABLE_COLUMNS))
