"""The report's plots, as SVG elements that take width, and the colour of text and axes, from the page around them."""

from __future__ import annotations  # of matplotlib, which takes a second that no command waits for that draws nothing

import io
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from detbench.quality.compare import BOXES_MSE_LIMIT
from detbench.report.rows import Row
from detbench.results.loads import ClosedLoop, Objective
from detbench.results.quality import Comparison
from detbench.results.sweep import CEILING, Memory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, without black and yellow: told apart by every kind of colour vision, on light and dark.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STAGE_COLOURS = {
    "receive": "#cc79a7",
    "wait": "#c8c8c8",
    "decode": "#56b4e9",
    "preprocess": "#009e73",
    "queue": "#888888",
    "forward": "#0072b2",
    "postprocess": "#e69f00",
    "serialise": "#d55e00",
}
_GREY = "#c8c8c8"
# A ratio from which bars on a linear axis cannot be read.
_WIDE = 20.0
# Text stays text, and what is black here has the page's text colour by its style.css.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}
# What matplotlib would say of itself and of the day, in each plot.
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


class Plots:
    """Draws the plots of one report.

    Args:
        rows: what was measured; runs without a load are left out.
        comparisons: output error of the implementations.
    """

    def __init__(self, rows: Sequence[Row], comparisons: Sequence[Comparison]) -> None:
        self._rows = [row for row in rows if row.run.measured and row.run.load]
        self._comparisons = comparisons
        names = dict.fromkeys([row.run.deployment for row in rows] + [each.implementation for each in comparisons])
        self._colours = dict(zip(names, itertools.cycle(PALETTE), strict=False))
        self._doubts = {row.run.deployment: "not compared" for row in rows if not (row.comparison or row.right)}
        compared = {row.run.deployment: row.comparison for row in rows if row.comparison}
        compared |= {each.implementation: each for each in comparisons}
        said = {"tolerated": "other answers", "failed": "wrong answers"}
        self._doubts |= {name: said[each.verdict] for name, each in compared.items() if each.verdict in said}
        self._numbers = itertools.count()

    def throughput(self) -> str:
        """Requests per second against users, a line per deployment; of open loops a bar for each run."""
        closed = [row for row in self._rows if isinstance(row.run.offered, ClosedLoop)]
        ceilings = {row.run.deployment for row in closed if row.run.implementation == CEILING}

        def lines(axes: Axes) -> None:
            for name, runs in _by_deployment(closed).items():
                xs, ys = zip(*runs, strict=True)
                if name in ceilings:
                    axes.plot(xs, ys, ":", color=_GREY, label=f"ceiling ({name}: no model)")
                    continue
                dashes = "--" if name in self._doubts else "-"
                axes.plot(xs, ys, dashes, marker="o", color=self._colours[name], label=self._label(name))
            users = sorted({row.run.offered.users for row in closed if isinstance(row.run.offered, ClosedLoop)})
            axes.set_xticks(users, [str(each) for each in users])
            axes.set_xlabel("users")
            axes.set_ylabel("requests per second")
            scale(axes.set_yscale, axes.yaxis, [row.run.load.rps for row in closed if row.run.load])
            if axes.get_yscale() == "linear":
                axes.set_ylim(bottom=0)
            axes.legend(frameon=False, loc="best")

        def bars(axes: Axes) -> None:
            for place, row in enumerate(self._rows):
                assert row.run.load is not None
                self._bar(axes, place, row.run.deployment, row.run.load.rps)
                if offered := row.run.load.offered_rps:
                    axes.plot([offered, offered], [place - 0.42, place + 0.42], color="black", linewidth=2)
            self._name_rows(axes)
            axes.set_xlabel("requests per second:  bar: answered   | offered")

        if closed:
            return self._draw("Requests per second against users", 3.2, lines)
        return self._draw("Requests per second of every run", self._height(), bars)

    def choice(self, slo: Sequence[Objective]) -> str:
        """What there is to choose from: latency against throughput, memory as the area, right answers or not.

        Latency is p99, or the percentile of the first limit of `slo` that is one. The ceiling, which is no choice, is a
        line.
        """
        limited = [each for each in slo if each.figure in ("p50", "p90", "p99", "p99.9")]
        figure = limited[0].figure if limited else "p99"
        shown = [row for row in self._rows if row.run.implementation != CEILING and _finite(row, figure) is not None]
        if not shown:
            return ""
        most_mb = max((row.run.memory.peak_mb or 0.0 for row in shown if row.run.memory), default=0.0)

        def draw(axes: Axes) -> None:
            for name in dict.fromkeys(row.run.deployment for row in shown):
                rows = [row for row in shown if row.run.deployment == name]
                xs, ys = [row.rps or 0.0 for row in rows], [_finite(row, figure) or 0.0 for row in rows]
                areas = [
                    40 + 260 * (row.run.memory.peak_mb or 0.0) / most_mb if row.run.memory and most_mb else 40
                    for row in rows
                ]
                colour, wrong = self._colours[name], name in self._doubts
                axes.plot(xs, ys, "--" if wrong else "-", color=colour, linewidth=1, alpha=0.5)
                axes.scatter(
                    xs, ys, s=areas, marker="X" if wrong else "o", color=colour, alpha=0.75, label=self._label(name)
                )
                for x, y, row in zip(xs, ys, rows, strict=True):
                    axes.annotate(str(row.run.offered), (x, y), (9, 6), textcoords="offset points", fontsize=8)
            scale(axes.set_xscale, axes.xaxis, [row.rps or 0.0 for row in shown])
            scale(axes.set_yscale, axes.yaxis, [_finite(row, figure) or 0.0 for row in shown])
            axes.margins(x=0.15, y=0.2)
            if axes.get_yscale() == "linear":
                axes.set_ylim(bottom=0)
            for each in limited[:1]:
                axes.axhline(each.limit, color="black", linewidth=1, linestyle=":")
                axes.annotate(f" {each}", (0, each.limit), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
            axes.set_xlabel("requests per second; area: memory peak")
            axes.set_ylabel(f"{figure} (ms)")
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=0.6)

        return self._draw(f"{figure} against requests per second", 3.6, draw)

    def latency(self) -> str:
        """p50, p90 and p99 of every run: a bar to p50, and marks at the others; hollow where one is uncertain."""

        def draw(axes: Axes) -> None:
            shown = [_marks(row) for row in self._rows]
            finite = [ms for marks in shown for _, ms, _ in marks if math.isfinite(ms)]
            scale(axes.set_xscale, axes.xaxis, finite)
            beyond = 1.15 * max(finite, default=1.0)
            for place, (row, marks) in enumerate(zip(self._rows, shown, strict=True)):
                colour = self._colours[row.run.deployment]
                ends = [min(ms, beyond) for _, ms, _ in marks]
                axes.plot([ends[0], ends[-1]], [place, place], color=colour, linewidth=2, alpha=0.5)
                for marker, ms, certain in marks:
                    at, fill = min(ms, beyond), colour if certain else "none"
                    size = 10 if marker == "|" else 6
                    axes.plot(at, place, marker, color=colour, markerfacecolor=fill, markersize=size, mew=2)
                if math.isinf(marks[-1][1]):
                    axes.annotate(" ∞", (beyond, place), va="center", fontsize=12)
            self._name_rows(axes)
            axes.set_xlabel("latency seen by the client (ms):  ● p50   ◆ p90   | p99;  hollow: uncertain")
            if axes.get_xscale() == "linear":
                axes.set_xlim(left=0)

        return self._draw("Latency percentiles of every run", self._height(), draw)

    def stages(self) -> str:
        """Where the server's time goes: the share of each stage in a request, and that of all but the models."""

        def draw(axes: Axes) -> None:
            for place, row in enumerate(self._rows):
                assert row.run.load is not None
                whole = sum(row.run.load.stages_ms.values()) or 1.0
                left = 0.0
                for stage, colour in _STAGE_COLOURS.items():
                    share = 100 * row.run.load.stages_ms.get(stage, 0.0) / whole
                    axes.barh(place, share, left=left, color=colour, height=0.6, label=stage if place == 0 else None)
                    left += share
                not_models = row.run.load.not_model_share
                if not_models is not None:
                    axes.annotate(f" {100 * not_models:.{0 if not_models >= 0.1 else 1}f} %", (100, place), va="center")
            self._name_rows(axes)
            axes.set_xlim(0, 100)
            axes.set_xlabel("share of the server's time of a request (%); right: not the models, the queue left out")
            axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.42, 1.0), handlelength=1)

        return self._draw("Share of each stage in the server's time", self._height() + 0.5, draw)

    def memory(self) -> str:
        """Highest memory peak of each deployment, and the part of it that an empty server takes in grey."""
        found: dict[str, Memory] = {}
        for row in self._rows:
            if row.run.memory and row.run.memory.peak_mb is not None:
                before = found.setdefault(row.run.deployment, row.run.memory)
                found[row.run.deployment] = max(before, row.run.memory, key=lambda each: each.peak_mb or 0.0)

        def draw(axes: Axes) -> None:
            for place, (name, memory) in enumerate(found.items()):
                peak = memory.peak_mb or 0.0
                self._bar(axes, place, name, peak)
                if memory.empty_mb:
                    axes.barh(place, memory.empty_mb, color=_GREY, edgecolor="white", height=0.6)
                axes.annotate(f" {peak:,.0f}", (peak, place), va="center")
            axes.set_yticks(range(len(found)), [self._label(name) for name in found])
            axes.invert_yaxis()
            axes.set_xlabel("memory peak (MB); grey: what the empty server takes")
            axes.margins(x=0.12)

        return self._draw("Memory peak per implementation", 1.0 + 0.4 * len(found), draw) if found else ""

    def output_error(self) -> str | None:
        """Boxes MSE per implementation against the gate's limit; None when nothing was compared."""
        if not self._comparisons:
            return None
        floor = BOXES_MSE_LIMIT * 1e-6

        def draw(axes: Axes) -> None:
            for place, comparison in enumerate(self._comparisons):
                error = comparison.overall.boxes_mse
                self._bar(axes, place, comparison.implementation, max(error, floor * 1.5))
                text = "0 (equal)" if error == 0 else f"{error:.1e}"
                axes.annotate(text, (max(error, floor * 1.5), place), (4, 0), textcoords="offset points", va="center")
            axes.set_xscale("log")
            axes.set_xlim(floor, max(1.0, *(c.overall.boxes_mse for c in self._comparisons)) * 1e3)
            axes.axvline(BOXES_MSE_LIMIT, color="black", linewidth=1, linestyle=":")
            axes.annotate(" gate", (BOXES_MSE_LIMIT, 1), xycoords=("data", "axes fraction"), va="bottom")
            axes.set_yticks(range(len(self._comparisons)), [self._label(c.implementation) for c in self._comparisons])
            axes.invert_yaxis()
            axes.set_xlabel("boxes MSE against the reference (px²)")

        return self._draw("Boxes MSE per implementation", 1.1 + 0.4 * len(self._comparisons), draw)

    def _label(self, name: str) -> str:
        return f"{name} ({self._doubts[name]})" if name in self._doubts else name

    def _bar(self, axes: Axes, place: int, name: str, value: float) -> None:
        hatch = "////" if name in self._doubts else None
        axes.barh(place, value, color=self._colours[name], hatch=hatch, edgecolor="white", height=0.6)

    def _name_rows(self, axes: Axes) -> None:
        names = [f"{row.run.deployment}, {row.run.offered}" for row in self._rows]
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()

    def _height(self) -> float:
        return 1.0 + 0.3 * len(self._rows)

    def _draw(self, title: str, height: float, draw: Callable[[Axes], None]) -> str:
        if not self._rows and "MSE" not in title:
            return ""
        return svg(title, height, f"plot{next(self._numbers)}", draw)


def svg(title: str, height: float, prefix: str, draw: Callable[[Axes], None]) -> str:
    """A plot as an SVG element in the report's style.

    Args:
        title: what it shows, for those who cannot see it.
        height: inches, at a width of 7.4.
        prefix: of the ids within, so that one page can have several.
        draw: draws on the axes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "svg.id": prefix, "svg.hashsalt": prefix}):
        figure = Figure(figsize=(7.4, height), layout="constrained")
        draw(figure.subplots())
        figure.draw_without_rendering()  # which makes the ticks, so that they are named as well
        for number, artist in enumerate(figure.findobj()):
            artist.set_gid(f"{prefix}-{number}")
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={**_NO_METADATA, "Title": title})
    document = out.getvalue()
    return document[document.index("<svg") :]  # within a page: without the prologue of a document


def _by_deployment(rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """Users and rate of each run of a closed loop, by users."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if isinstance(row.run.offered, ClosedLoop) and row.run.load:
            found.setdefault(row.run.deployment, []).append((row.run.offered.users, row.run.load.rps))
    return {name: sorted(runs) for name, runs in found.items()}


def _finite(row: Row, figure: str) -> float | None:
    """The percentile of that name in ms; None where there is none, or a failure makes it infinite."""
    latency = row.run.load.latency if row.run.load else None
    value = latency.percentiles()[figure].value_ms if latency else math.inf
    return value if math.isfinite(value) else None


def _marks(row: Row) -> list[tuple[str, float, bool]]:
    """Marker, value in ms and certainty of p50, p90 and p99."""
    assert row.run.load is not None
    latency = row.run.load.latency
    assert latency is not None
    shown = zip("od|", (latency.p50, latency.p90, latency.p99), strict=True)
    return [(marker, each.value_ms, each.certified) for marker, each in shown]


def scale(set_scale: Callable[[str], None], axis: object, values: Sequence[float]) -> None:
    """A logarithmic axis where a linear one would hide the small values."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) / min(positive) < _WIDE:
        return
    set_scale("log")
    plain_numbers(axis)


def plain_numbers(axis: object) -> None:
    """Write the numbers of a logarithmic axis as they are, and none between the large ticks."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # type: ignore[attr-defined]
    axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]
