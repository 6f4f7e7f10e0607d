"""The table of output error: a row per implementation and model, with mAP where the images are annotated."""

from collections.abc import Sequence

from detbench.report.rows import GATE_COLUMN, NOT_APPLICABLE, Column, scientific
from detbench.results.quality import Comparison, ErrorFigures, GroundTruth

_FIGURES = (
    Column("boxes MSE (px²)", "mean squared error of box coordinates; what has no partner counts against zeros"),
    Column("scores MSE", "mean squared error of scores, likewise"),
    Column("pairs' boxes MSE (px²)", "of the detections that have a partner alone"),
    Column("pairs' scores MSE", "likewise"),
    Column("largest box difference (px)", "of one coordinate of a pair"),
    Column("largest score difference", "of a pair"),
    Column("labels accuracy", "share of detections with the reference's label"),
    Column("mean IoU", "of the pairs"),
    Column("missed", "detections of the reference without a partner"),
    Column("spurious", "detections without a partner in the reference"),
)
_GROUND_TRUTH = (
    Column("mAP", "COCO's, IoU 0.50:0.95, against the annotations"),
    Column("ΔmAP", "mAP less that of the reference; in brackets what other images of the kind would show with 95 %"),
)
_REPLICA = (Column("replica", "the worst one of the cluster, whose figures these are", numeric=False),)
_VERDICT = (Column("claims", "exact: to give the reference's answers", numeric=False), GATE_COLUMN)


def output_error_columns(comparisons: Sequence[Comparison]) -> tuple[Column, ...]:
    """The columns of the table; those of mAP, and the replica, where one of the comparisons has any."""
    replica = _REPLICA if _of_clusters(comparisons) else ()
    truth = _GROUND_TRUTH if _annotated(comparisons) else ()
    return (
        Column("implementation", "way of running the models", numeric=False),
        Column("model", "all: pooled over the models", numeric=False),
        *replica,
        *_FIGURES,
        *truth,
        *_VERDICT,
    )


def output_error_rows(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Text under each of `output_error_columns`: a row per implementation and model, then one of all its models."""
    annotated, of_clusters = _annotated(comparisons), _of_clusters(comparisons)
    rows = []
    for comparison in comparisons:
        claims = "exact" if comparison.exact else "not exact"
        replica = (comparison.replica or "–",) if of_clusters else ()
        for name, figures in comparison.per_model.items():
            truth = _truth_cells(comparison.ground_truth.get(name)) if annotated else ()
            rows.append((comparison.implementation, name, *replica, *_figure_cells(figures), *truth, "", ""))
        of_all = _figure_cells(comparison.overall)
        truth = ("", "") if annotated else ()
        rows.append((comparison.implementation, "all", *replica, *of_all, *truth, claims, comparison.verdict))
    return rows


def _annotated(comparisons: Sequence[Comparison]) -> bool:
    return any(comparison.ground_truth for comparison in comparisons)


def _of_clusters(comparisons: Sequence[Comparison]) -> bool:
    return any(comparison.replica for comparison in comparisons)


def _figure_cells(figures: ErrorFigures) -> tuple[str, ...]:
    return (
        scientific(figures.boxes_mse),
        scientific(figures.scores_mse),
        _of_pairs(figures.pairs_boxes_mse),
        _of_pairs(figures.pairs_scores_mse),
        _of_pairs(figures.largest_box_difference_px),
        _of_pairs(figures.largest_score_difference),
        f"{figures.labels_accuracy:.4f}",
        f"{figures.mean_iou:.4f}",
        str(figures.missed),
        str(figures.spurious),
    )


def _of_pairs(value: float | None) -> str:
    return NOT_APPLICABLE if value is None else scientific(value)


def _truth_cells(truth: GroundTruth | None) -> tuple[str, str]:
    if truth is None:
        return NOT_APPLICABLE, NOT_APPLICABLE
    return f"{truth.map:.4f}", f"{truth.difference:+.4f} [{truth.low:+.4f}, {truth.high:+.4f}]"
