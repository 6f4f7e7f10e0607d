"""report.html: one file that needs no other, for the person who has to choose."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from detbench.quality.outputs import read_outputs
from detbench.report.answer import answer, ceiling, limits, verdicts
from detbench.report.beside import beside
from detbench.report.output_error import output_error_columns, output_error_rows
from detbench.report.photo import COLOURS, side_by_side
from detbench.report.plots import Plots
from detbench.report.rows import (
    IMPLEMENTATION_COLUMNS,
    columns_of,
    ground_truth_notes,
    implementation_rows,
    rows_of,
    uncertain_line,
)
from detbench.report.scaling import COLUMNS as SCALING_COLUMNS
from detbench.report.scaling import scaling_rows
from detbench.results.sweep import Sweep
from detbench.verdict import FEW_REQUESTS

TEMPLATES = Environment(
    loader=PackageLoader("detbench.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals["zip"] = zip


def to_html(sweep: Sweep, run_dir: Path) -> str:
    """The page; detections and photo are taken from `run_dir` where they are there."""
    rows, columns = rows_of(sweep), columns_of(sweep)
    plots = Plots(rows, sweep.comparisons)
    return TEMPLATES.get_template("report.html").render(
        sweep=sweep,
        columns=columns,
        rows=[("" if row.run.measured else "failed", row.cells(columns)) for row in rows],
        uncertain=uncertain_line(rows, columns),
        scaling_columns=SCALING_COLUMNS,
        scaling=[("", cells) for cells in scaling_rows(sweep, rows)],
        implementation_columns=IMPLEMENTATION_COLUMNS,
        implementations=[("", cells) for cells in implementation_rows(sweep)],
        answer=answer(rows, sweep.settings.slo),
        ceiling=ceiling(rows),
        limits=limits(sweep.settings.slo),
        verdicts=verdicts(rows),
        random_weights=[model.model_name for model in sweep.weights if model.source == "random"],
        choice=plots.choice(sweep.settings.slo),
        plots={
            "Throughput": plots.throughput(),
            "Latency": plots.latency(),
            "Where the server's time goes": plots.stages(),
            "Memory": plots.memory(),
        },
        error_plot=plots.output_error(),
        error_columns=output_error_columns(sweep.comparisons),
        errors=[("", cells) for cells in output_error_rows(sweep.comparisons)],
        ground_truth_notes=ground_truth_notes(sweep.comparisons),
        photos=_photos(sweep, run_dir),
        beside=beside(sweep, run_dir),
        model_colours=[(model.model_name, COLOURS[i % len(COLOURS)]) for i, model in enumerate(sweep.weights)],
        warnings=[
            (row.run, warning)
            for row in rows
            for warning in row.run.warnings
            if warning.invalidates or warning.code != FEW_REQUESTS
        ],
    )


def _photos(sweep: Sweep, run_dir: Path) -> dict[str, str]:
    photo, reference = run_dir / "photo.jpg", run_dir / "detections" / "reference.json"
    if not photo.exists() or not reference.exists():
        return {}
    first = read_outputs(reference)[0]
    return {
        comparison.implementation: side_by_side(photo, first, read_outputs(path)[0])
        for comparison in sweep.comparisons
        if (path := run_dir / "detections" / f"{comparison.implementation}.json").exists()
    }
