"""Draws docs/imports.svg: which folders and modules of each package import which, by the floors in pyproject.toml.

Each arrow's id in the file is what it stands for, so that a test can tell when the picture is out of date.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any

import grimp
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

REPOSITORY = Path(__file__).parents[1]

_DOWN, _UP, _INK, _FLOOR = "#0072b2", "#d55e00", "#1d2329", "#f0f2f5"
_STYLE: dict[Any, Any] = {"svg.hashsalt": "imports", "font.family": "sans-serif", "font.size": 10, "text.color": _INK}

Edge = tuple[str, str]
Floors = list[list[str]]


def floors() -> dict[str, Floors]:
    """The floors of each package, from the top: the contracts that `lint-imports` judges."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return {
        contract["containers"][0]: [floor.split(" | ") for floor in contract["layers"]]
        for contract in contracts
        if contract["type"] == "layers"
    }


def imports(package: str) -> dict[Edge, int]:
    """The folders and modules on a package's top floor that import another, and in how many places."""
    graph = grimp.build_graph(package, cache_dir=None)
    found: dict[Edge, int] = {}
    for importer in graph.modules - {package}:
        for imported in graph.find_modules_directly_imported_by(importer) - {package}:
            edge = importer.split(".")[1], imported.split(".")[1]
            if edge[0] != edge[1]:
                found[edge] = found.get(edge, 0) + 1
    return dict(sorted(found.items()))


def draw(axes: Axes, package: str, storeys: Floors, edges: dict[Edge, int]) -> None:
    """The names one below the other, and an arc for each import: to the right downwards, to the left upwards."""
    heights: dict[str, float] = {}
    lowest = 0.0
    for floor in storeys:
        axes.axhspan(lowest - 0.4, lowest - 0.6 - 0.8 * len(floor), color=_FLOOR)
        for place, name in enumerate(floor):
            heights[name] = lowest - 0.9 - 0.8 * place
            axes.text(0, heights[name], name, ha="center", va="center")
        lowest -= 0.8 * len(floor) + 0.4
    for (importer, imported), places in edges.items():
        start, end = heights[importer], heights[imported]
        down = start > end
        arrow = FancyArrowPatch(
            (1.1 if down else -1.1, start),
            (1.1 if down else -1.1, end),
            connectionstyle="arc3,rad=-0.45",
            arrowstyle="-|>,head_length=4,head_width=2",
            linewidth=0.5 + 0.15 * min(places, 12),
            color=_DOWN if down else _UP,
            alpha=0.75,
        )
        arrow.set_gid(f"{package}: {importer} -> {imported}")
        axes.add_patch(arrow)
    axes.set_title(package, fontweight="bold")
    axes.set_xlim(-2.2, 4.6)
    axes.set_ylim(lowest - 0.3, 0)
    axes.set_axis_off()


def main() -> None:
    """Draw the picture to the path in the first argument, docs/imports.svg without one."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "docs" / "imports.svg"
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.5, 7.5), layout="constrained")
        for axes, (package, storeys) in zip(figure.subplots(1, 2), floors().items(), strict=True):
            draw(axes, package, storeys, imports(package))
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
