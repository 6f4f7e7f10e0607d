"""The report of a sweep: one exporter a file, all from the rows that `report.rows` makes."""

from pathlib import Path

from pydantic import ValidationError

from detbench.atomic import write_atomically
from detbench.errors import DetbenchError
from detbench.report.comma_separated import to_csv
from detbench.report.page import to_html
from detbench.report.table import markdown_table
from detbench.results import Sweep


def read_sweep(run_dir: Path) -> Sweep:
    """Read the results.json of a run.

    Raises:
        DetbenchError: there is none, or it is damaged.
    """
    path = run_dir / "results.json"
    try:
        return Sweep.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DetbenchError(f"{path} cannot be read ({error.strerror}); name the folder of a run") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DetbenchError(f"{path} is no sweep of this version of detbench: {where}: {first['msg']}") from error


def write_reports(run_dir: Path) -> Sweep:
    """Write results.csv, results.md and report.html beside the results.json of a run; returns what it holds."""
    sweep = read_sweep(run_dir)
    write_atomically(run_dir / "results.csv", to_csv(sweep))
    write_atomically(run_dir / "results.md", markdown_table(sweep))
    write_atomically(run_dir / "report.html", to_html(sweep, run_dir))
    return sweep
