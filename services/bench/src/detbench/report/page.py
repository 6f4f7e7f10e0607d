"""report.html: one file that needs no other, for the person who has to choose."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from detbench.quality.outputs import read_outputs
from detbench.report.photo import COLOURS, side_by_side
from detbench.report.plots import Plots
from detbench.report.rows import (
    COLUMNS,
    IMPLEMENTATION_COLUMNS,
    Row,
    best,
    implementation_cells,
    rows_of,
    scientific,
)
from detbench.results import BASELINE, Sweep

TEMPLATES = Environment(
    loader=PackageLoader("detbench.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["scientific"] = scientific
TEMPLATES.globals["zip"] = zip


def to_html(sweep: Sweep, run_dir: Path) -> str:
    """The page; detections and photo are taken from `run_dir` where they are there."""
    rows = rows_of(sweep)
    plots = Plots(rows, sweep.comparisons)
    return TEMPLATES.get_template("report.html").render(
        sweep=sweep,
        columns=COLUMNS,
        rows=[("failed" if row.run.status != "ok" else "", row.cells()) for row in rows],
        implementation_columns=IMPLEMENTATION_COLUMNS,
        implementations=[("", implementation_cells(info)) for info in sweep.implementations],
        answer=_answer(rows),
        random_weights=[model.model_name for model in sweep.weights if model.source == "random"],
        plots={
            "Throughput": plots.throughput(),
            "Latency": plots.latency(),
            "Where the server's time goes": plots.stages(),
        },
        vram_plot=plots.vram(),
        error_plot=plots.output_error(),
        photos=_photos(sweep, run_dir),
        model_colours=[(model.model_name, COLOURS[i % len(COLOURS)]) for i, model in enumerate(sweep.weights)],
        warnings=[(row.run, warning) for row in rows for warning in row.run.warnings],
    )


def _answer(rows: list[Row]) -> str:
    """The one sentence that the report is opened for."""
    winner = best(rows)
    if winner is None or winner.run.load is None:
        return "Nothing was measured whose answers are right."
    name, users = winner.run.implementation, winner.run.users
    checked = "gives the reference's answers" if winner.comparison else "was not compared with the reference"
    answer = f"{name} is fastest: {winner.run.load.rps:.3g} images per second with {_users(users)}, and it {checked}"
    if winner.speedup is not None and name != BASELINE:
        answer += f"; {winner.speedup:.2f} times baseline"
    wrong: dict[str, float] = {}
    for row in rows:
        if row.wrong and row.run.load and row.run.load.rps > winner.run.load.rps:
            wrong[row.run.implementation] = max(row.run.load.rps, wrong.get(row.run.implementation, 0.0))
    faster = "; ".join(f"{each} does {rate:.3g}, and its answers are wrong" for each, rate in wrong.items())
    return f"{answer}. {faster}." if faster else f"{answer}."


def _users(count: int) -> str:
    return "1 user" if count == 1 else f"{count} users"


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
