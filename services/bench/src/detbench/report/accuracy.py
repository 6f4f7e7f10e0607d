"""The table of accuracy: mAP of each implementation and model, and the difference from baseline's."""

from collections.abc import Sequence

from rich.table import Table

from detbench.report.rows import Column
from detbench.report.table import table_of
from detbench.results.quality import Comparison
from detbench.results.sweep import BASELINE

COLUMNS = (
    Column("implementation", "way of running the models", numeric=False),
    Column("model", "whose classes are the annotations'", numeric=False),
    Column("mAP", "COCO's, IoU 0.50:0.95"),
    Column("AP50", "at an IoU of 0.50"),
    Column("AP75", "at an IoU of 0.75"),
    Column("ΔmAP", "mAP less baseline's"),
    Column("95 %", "what the difference would be with other images of the kind"),
    Column(
        "verdict", "passed: baseline's answers; tolerated: near them, and no more mAP lost than allowed", numeric=False
    ),
)


def accuracy_rows(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Text under each of `COLUMNS`, a row for each implementation and model; baseline is not compared with itself."""
    return [
        (
            comparison.implementation,
            name,
            f"{truth.map:.4f}",
            f"{truth.ap50:.4f}",
            f"{truth.ap75:.4f}",
            *(
                ("–", "–", "reference")
                if comparison.implementation == BASELINE
                else (f"{truth.difference:+.4f}", f"{truth.low:+.4f} to {truth.high:+.4f}", comparison.verdict)
            ),
        )
        for comparison in comparisons
        for name, truth in comparison.ground_truth.items()
    ]


def accuracy_table(comparisons: Sequence[Comparison]) -> Table:
    """The table for a terminal; what has failed stands out."""
    rows = accuracy_rows(comparisons)
    styles = ["red" if cells[-1] == "failed" else "" for cells in rows]
    return table_of("Accuracy against the annotations", COLUMNS, rows, styles)


def doubts(comparisons: Sequence[Comparison], map_loss: float) -> list[str]:
    """A line for each model whose loss is within the limit here and may be beyond it with other images."""
    return [
        f"{comparison.implementation}, {name}: {comparison.images} images do not tell a loss of {map_loss:g} from "
        f"none: the interval reaches to {truth.low:+.4f}; evaluate more images"
        for comparison in comparisons
        for name, truth in comparison.ground_truth.items()
        if truth.low < -map_loss <= truth.difference
    ]
