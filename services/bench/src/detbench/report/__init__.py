"""The reports of a run (sweep, ablation, search for capacities): one exporter a file, from rows made in one place."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from detbench.atomic import write_atomically
from detbench.errors import DetbenchError
from detbench.report.ablation import ablation_csv, ablation_markdown
from detbench.report.ablation_page import ablation_page
from detbench.report.capacity import capacity_csv, capacity_markdown
from detbench.report.capacity_page import capacity_page
from detbench.report.comma_separated import to_csv
from detbench.report.page import to_html
from detbench.report.table import markdown_table
from detbench.results.ablation import Ablation
from detbench.results.capacity import Capacities
from detbench.results.sweep import Sweep

T = TypeVar("T", bound=BaseModel)


def read_sweep(run_dir: Path) -> Sweep:
    """Read the results.json of a run.

    Raises:
        DetbenchError: there is none, or it is damaged.
    """
    return _read(run_dir / "results.json", Sweep)


def read_ablation(run_dir: Path) -> Ablation:
    """Read the ablation.json of a run.

    Raises:
        DetbenchError: there is none, or it is damaged.
    """
    return _read(run_dir / "ablation.json", Ablation)


def read_capacities(run_dir: Path) -> Capacities:
    """Read the capacity.json of a run.

    Raises:
        DetbenchError: there is none, or it is damaged.
    """
    return _read(run_dir / "capacity.json", Capacities)


def write_reports(run_dir: Path) -> Sweep:
    """Write results.csv, results.md and report.html beside the results.json of a run; returns what it holds."""
    sweep = read_sweep(run_dir)
    write_atomically(run_dir / "results.csv", to_csv(sweep))
    write_atomically(run_dir / "results.md", markdown_table(sweep))
    write_atomically(run_dir / "report.html", to_html(sweep, run_dir))
    return sweep


def write_ablation_reports(run_dir: Path) -> Ablation:
    """Write ablation.csv, ablation.md and ablation.html beside the ablation.json of a run; returns what it holds."""
    ablation = read_ablation(run_dir)
    write_atomically(run_dir / "ablation.csv", ablation_csv(ablation))
    write_atomically(run_dir / "ablation.md", ablation_markdown(ablation))
    write_atomically(run_dir / "ablation.html", ablation_page(ablation))
    return ablation


def write_capacity_reports(run_dir: Path) -> Capacities:
    """Write capacity.csv, capacity.md and capacity.html beside the capacity.json of a run; returns what it holds."""
    capacities = read_capacities(run_dir)
    write_atomically(run_dir / "capacity.csv", capacity_csv(capacities))
    write_atomically(run_dir / "capacity.md", capacity_markdown(capacities))
    write_atomically(run_dir / "capacity.html", capacity_page(capacities))
    return capacities


def _read(path: Path, kind: type[T]) -> T:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DetbenchError(f"{path} cannot be read ({error.strerror}); name the folder of a run") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DetbenchError(
            f"{path} is no {kind.__name__.lower()} of this version of detbench: {where}: {first['msg']}"
        ) from error
