"""ablation.html: one file that needs no other, for the person who wants to know where a speed-up comes from."""

from __future__ import annotations  # of matplotlib, which is imported where something is drawn

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from detbench.report.ablation import (
    COST_COLUMNS,
    GAIN_COLUMNS,
    comparisons_of,
    cost_cells,
    gain_rows,
    is_doubtful,
    notes_of,
)
from detbench.report.ablation_answer import ablation_answer, images
from detbench.report.output_error import output_error_columns, output_error_rows
from detbench.report.page import TEMPLATES
from detbench.report.plots import PALETTE, Plots, svg
from detbench.report.rows import duration
from detbench.results.ablation import Ablation, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def ablation_page(ablation: Ablation) -> str:
    """The page."""
    comparisons = comparisons_of(ablation)
    return TEMPLATES.get_template("ablation.html").render(
        ablation=ablation,
        answer=ablation_answer(ablation),
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
        axes.set_yticks(range(len(rows)), [fill(step.label, 26) for step, _ in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(timing.upper_quartile_ms for _, timing in rows))
        axes.set_xlabel(f"median latency of {images(batch_size)} (ms), and its quartiles; × baseline")

    return svg(f"Latency of each step, {images(batch_size)}", 1.0 + 0.4 * len(rows), f"latency{batch_size}", draw)
