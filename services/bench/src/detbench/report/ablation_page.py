"""ablation.html: one file that needs no other, for the person who wants to know where a speed-up comes from."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from detbench.ablation_results import Ablation, Step
from detbench.report.ablation import (
    COST_COLUMNS,
    GAIN_COLUMNS,
    comparisons_of,
    cost_cells,
    gain_rows,
    is_doubtful,
    notes_of,
)
from detbench.report.answer import memory_clause
from detbench.report.output_error import output_error_columns, output_error_rows
from detbench.report.page import TEMPLATES
from detbench.report.plots import PALETTE, Plots, svg
from detbench.report.rows import duration
from detbench.results import BASELINE


def ablation_page(ablation: Ablation) -> str:
    """The page."""
    comparisons = comparisons_of(ablation)
    return TEMPLATES.get_template("ablation.html").render(
        ablation=ablation,
        answer=_answer(ablation),
        gain_columns=GAIN_COLUMNS,
        gains=[("", cells) for _, cells in gain_rows(ablation)],
        cost_columns=COST_COLUMNS,
        costs=[("", cost_cells(step)) for step in ablation.steps],
        meanings=(*GAIN_COLUMNS, *COST_COLUMNS[1:]),
        plots={size: _latency(ablation.steps, size) for size in ablation.settings.batch_sizes},
        error_plot=Plots([], comparisons).output_error(),
        error_columns=output_error_columns(comparisons),
        errors=[("", cells) for cells in output_error_rows(comparisons)],
        notes=notes_of(ablation),
        reasons={each.implementation: each.reasons for each in comparisons if each.reasons},
        random_weights=[model.model_name for model in ablation.weights if model.source == "random"],
    )


def _answer(ablation: Ablation) -> str:
    """The sentence that the page is opened for, about the smallest batch size."""
    size = ablation.settings.batch_sizes[0]
    measured = [(step, timing) for step in ablation.steps if (timing := step.timing(size)) is not None]
    right = [(step, timing) for step, timing in measured if step.right]
    if not right:
        return "Nothing was measured whose answers are right."
    step, timing = min(right, key=lambda row: row[1].median_ms)
    name = step.implementation.name
    claims = "exact row" if step.comparison else "row that claims to be exact (it was not compared)"
    answer = f"The fastest {claims} is {name}: {duration(timing.median_ms)} ms for {_images(size)}"
    gain = timing.gain
    if gain is not None and gain.speedup is not None and name != BASELINE:
        answer += f", {gain.speedup:.2f} times baseline"
    answer += f"{memory_clause(timing.memory)}."
    shares = {
        each.label: t.gain.share for each, t in measured if t.gain and t.gain.on_path and t.gain.share is not None
    }
    if not shares:
        return answer
    most = max(shares, key=lambda label: shares[label])
    return f"{answer} Most of it comes from “{most.removeprefix('+ ')}”: {100 * shares[most]:.0f} % of its logarithm."


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"a batch of {count} images"


def _latency(steps: Sequence[Step], batch_size: int) -> str:
    """A bar per step to its median, with a line from quartile to quartile; empty where nothing was measured."""
    rows = [(step, timing) for step in steps if (timing := step.timing(batch_size)) is not None]
    if not rows:
        return ""

    def draw(axes: Axes) -> None:
        for place, (step, timing) in enumerate(rows):
            hatch = "////" if is_doubtful(step) else None
            axes.barh(place, timing.median_ms, color=PALETTE[0], hatch=hatch, edgecolor="white", height=0.6)
            quartiles = [timing.lower_quartile_ms, timing.upper_quartile_ms]
            axes.plot(quartiles, [place, place], color=PALETTE[1], linewidth=3)
            gain = f", {timing.gain.speedup:.2f}×" if timing.gain and timing.gain.speedup is not None else ""
            end = max(timing.median_ms, timing.upper_quartile_ms)
            text = f"{duration(timing.median_ms)} ms{gain}"
            axes.annotate(text, (end, place), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rows)), [step.label for step, _ in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(timing.upper_quartile_ms for _, timing in rows))
        axes.set_xlabel(f"median latency of {_images(batch_size)} (ms), and its quartiles; × baseline")

    return svg(f"Latency of each step, {_images(batch_size)}", 1.0 + 0.4 * len(rows), f"latency{batch_size}", draw)
