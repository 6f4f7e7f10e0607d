"""Plots as elements of a page: what matplotlib writes must be valid there, and follow the page's colours."""

import re
import xml.etree.ElementTree as ElementTree
from importlib.resources import files

from matplotlib.axes import Axes

from detbench.report.plots import PALETTE, svg

SVG = "{http://www.w3.org/2000/svg}"
STYLE = (files("detbench.report") / "templates" / "style.css").read_text()


def draw(axes: Axes) -> None:
    axes.plot([1, 2, 3], [1, 2, 30], marker="o", color=PALETTE[0], label="line")
    axes.bar([1, 2], [3, 4], hatch="////")
    axes.set_yscale("log")
    axes.set_xlabel("users")
    axes.legend()


def styles(element: ElementTree.Element) -> dict[str, str]:
    pairs = (each.split(":", 1) for each in element.get("style", "").split(";") if ":" in each)
    return {name.strip(): value.strip() for name, value in pairs}


def test_a_plot_says_what_it_shows_and_not_when_it_was_drawn():
    drawn = svg("Requests & users", 3.0, "first", draw)
    assert drawn.startswith("<svg")
    assert ElementTree.fromstring(drawn).findtext(f"{SVG}title") == "Requests & users"
    assert drawn == svg("Requests & users", 3.0, "first", draw)
    assert "matplotlib" not in drawn.lower()


def test_plots_on_one_page_share_no_id_and_each_finds_its_own():
    both = [ElementTree.fromstring(svg("Same", 3.0, prefix, draw)) for prefix in ("first", "second")]
    ids = [[element.get("id") for element in plot.iter() if element.get("id")] for plot in both]
    assert len({*ids[0], *ids[1]}) == len(ids[0]) + len(ids[1]) > 20
    for plot, own in zip(both, ids, strict=True):
        used = re.findall(r"(?:url\(#|href=\"#)([^\")]+)", ElementTree.tostring(plot, encoding="unicode"))
        assert used
        assert set(used) <= set(own)


def test_text_and_axes_have_the_pages_text_colour():
    plot = ElementTree.fromstring(svg("Colours", 3.0, "first", draw))
    texts = list(plot.iter(f"{SVG}text"))
    assert len(texts) > 5
    assert all("fill" not in styles(text) for text in texts)  # so that it is inherited
    assert "figure svg {" in STYLE
    assert "fill: currentColor" in STYLE
    black = [element for element in plot.iter() if styles(element).get("stroke") == "#000000"]
    assert black
    assert '[style*="stroke: #000000"] { stroke: currentColor' in STYLE
    assert all("stroke: #000000" in element.get("style", "") for element in black)
