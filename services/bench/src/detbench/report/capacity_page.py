"""capacity.html: one file that needs no other, for the person who has to know how much a server can take."""

from __future__ import annotations  # of matplotlib, which is imported where something is drawn

import itertools
import math
from typing import TYPE_CHECKING

from detbench.report.capacity import answer_of, columns_of, notes_of, probe_columns_of, probe_rows_of, rows_of, rps
from detbench.report.page import TEMPLATES
from detbench.report.plots import PALETTE, plain_numbers, scale, svg
from detbench.results.capacity import Capacities, Probe
from detbench.results.loads import Objective
from detbench.slo import figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is drawn where no limit of latency was set.
_P99 = Objective(figure="p99", limit=math.inf)


def capacity_page(capacities: Capacities) -> str:
    """The page."""
    columns = columns_of(capacities)
    return TEMPLATES.get_template("capacity.html").render(
        capacities=capacities,
        answer=answer_of(capacities),
        columns=columns,
        rows=[
            ("" if each.passed else "failed", cells)
            for each, cells in zip(capacities.capacities, rows_of(capacities), strict=True)
        ],
        plot=_latency(capacities),
        probe_columns=probe_columns_of(capacities),
        probes=[("failed" if probe.outcome == "failed" else "", cells) for probe, cells in probe_rows_of(capacities)],
        notes=notes_of(capacities),
        random_weights=[model.model_name for model in capacities.weights if model.source == "random"],
    )


def _latency(capacities: Capacities) -> str:
    """The limited latency of every probe against its rate, with the limit and the capacities; empty without a probe."""
    probes = [probe for capacity in capacities.capacities for probe in capacity.probes]
    if not probes:
        return ""
    limited = [each for each in capacities.settings.slo if each.is_latency]
    drawn = limited[0] if limited else _P99
    finite = [ms for probe in probes if math.isfinite(ms := _ms(drawn, probe))]
    finite += [drawn.limit] if math.isfinite(drawn.limit) else []
    top = 2.0 * max(finite, default=1.0)

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import LogLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        plain_numbers(axes.yaxis)
        scale(axes.set_xscale, axes.xaxis, [probe.rate for probe in probes])
        if axes.get_xscale() == "log":
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        for capacity, colour in zip(capacities.capacities, itertools.cycle(PALETTE), strict=False):
            for probe in capacity.probes:
                marker, fill = _mark(drawn, probe)
                at = min(_ms(drawn, probe), top)
                size = 9 if probe.confirms else 6
                face = colour if fill else "none"
                axes.plot(probe.rate, at, marker, color=colour, markerfacecolor=face, markersize=size, mew=1.8)
            if capacity.passed:
                axes.axvline(capacity.passed.rate, color=colour, linewidth=1.2)
            held = f"{rps(capacity.passed.rate)}/s" if capacity.passed else "none"
            axes.plot([], [], "s", color=colour, label=f"{capacity.deployment}: {held}")
        if math.isfinite(drawn.limit):
            axes.axhline(drawn.limit, color="black", linewidth=1, linestyle=":")
            axes.annotate(f"{drawn} ", (1, drawn.limit), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        axes.set_ylim(top=1.3 * top)
        axes.set_xlabel(
            "offered rate (requests/s):  ● passed   × failed   ▲ ended early   ○ unusable;  large: confirming"
        )
        axes.set_ylabel(f"{drawn.figure} (ms)")
        axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=1)

    return svg(f"{drawn.figure} of every probe against its rate", 3.8, "capacity", draw)


def _ms(drawn: Objective, probe: Probe) -> float:
    """What is drawn of a probe; infinite where it was ended early, or requests failed."""
    value = figure_of(drawn, probe.run.load, probe.run.memory)
    return math.inf if value is None else value


def _mark(drawn: Objective, probe: Probe) -> tuple[str, bool]:
    """The marker of a probe, and whether it is filled."""
    if probe.outcome == "unusable":
        return "o", False
    if probe.outcome == "passed":
        return "o", True
    return ("^", True) if math.isinf(_ms(drawn, probe)) else ("x", True)
