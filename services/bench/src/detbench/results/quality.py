"""Whether answers are right: compared with the reference, with annotations, under load, and sent twice."""

from typing import Literal

from pydantic import Field

from detbench.results.record import Record


class Gate(Record):
    """Whether the figures of every model are within their limits."""

    passed: bool
    reasons: list[str] = Field(default_factory=list, description="one line per figure out of its limit")


Judgement = Literal["passed", "tolerated", "failed"]


class AuditedReplica(Record):
    """The answers of one replica of a cluster, as those of all in `Audit`."""

    audited: int
    right: int


class Audit(Record):
    """The answers of one run, compared with the reference's. `str()` is for a person to read."""

    answers: int = Field(description="good ones to what was issued in the window")
    audited: int = Field(description="of those, what was compared; the others were too many different ones to keep")
    distinct: int = Field(description="different answers among the audited ones; of several rounds the sum")
    right: int = Field(description="audited ones that are the reference's but for float32 reassociation")
    reasons: list[str] = Field(default_factory=list, description="why the first ones that are not right are not")
    replicas: dict[str, AuditedReplica] = Field(
        default_factory=dict, description="the audited ones by the replica that gave them; empty without a cluster"
    )
    gate: Gate = Field(description="of all audited ones of each replica together, as `Comparison.gate`")
    tolerance: Gate | None = Field(description="of the same, as `Comparison.tolerance`, without mAP")

    @property
    def verdict(self) -> Judgement:
        """As `Comparison.verdict`."""
        return _judgement(self.gate, self.tolerance)

    def __str__(self) -> str:
        of = "" if self.audited == self.answers else f" audited of {self.answers:,}"
        return f"{self.right:,} of {self.audited:,}{of}"


class CacheCheck(Record):
    """How many times as fast an image is answered that is sent again at once; 1 where no answer is kept."""

    pairs: int = Field(description="images that were sent twice, none of them ever before")
    ratio: float = Field(description="the first answer's time over the second's, geometric mean")
    low: float | None = Field(description="of the interval that holds the true ratio with 95 %")
    high: float | None


class ErrorFigures(Record):
    """Output error against the reference, over detections with score >= 0.1. Definitions: docs/measuring.md.

    `boxes_mse` and `scores_mse` count a detection without a partner against zeros. The figures of the pairs leave it
    out; they are None where there is no pair.
    """

    boxes_mse: float = Field(description="px²")
    scores_mse: float
    pairs_boxes_mse: float | None = Field(description="px², of the assigned pairs alone")
    pairs_scores_mse: float | None = Field(description="of the assigned pairs alone")
    largest_box_difference_px: float | None = Field(description="of one coordinate of an assigned pair")
    largest_score_difference: float | None = Field(description="of an assigned pair")
    labels_accuracy: float
    mean_iou: float = Field(description="of the assigned pairs; 0 where there is none and something was to be found")
    pairs: int
    missed: int
    spurious: int
    reference_detections: int
    candidate_detections: int


class GroundTruth(Record):
    """COCO mAP (IoU 0.50:0.95) against the dataset's annotations, in [0, 1].

    `low` and `high` bound the difference that other images of the same kind would show with 95 %.
    """

    map: float
    ap50: float = Field(description="at an IoU of 0.50")
    ap75: float = Field(description="at an IoU of 0.75")
    map_baseline: float
    difference: float
    low: float
    high: float


class Comparison(Record):
    """Output error of one implementation: per model of the set, and over all of them.

    Of a cluster the figures are those of the worst replica, and the gates are passed where those of all replicas are.
    """

    implementation: str
    model_set: str
    exact: bool = Field(description="whether the implementation claims to give the reference's answers")
    images: int
    replica: str | None = Field(default=None, description="the worst one of a cluster; None without a cluster")
    replicas: dict[str, Judgement] = Field(default_factory=dict, description="of a cluster, the verdict on each")
    batch_sizes: dict[int, int] = Field(description="size of the batch that an image was answered in, to images")
    per_model: dict[str, ErrorFigures]
    overall: ErrorFigures
    ground_truth: dict[str, GroundTruth] = Field(
        default_factory=dict, description="per model whose classes are the dataset's; empty without annotations"
    )
    ground_truth_notes: list[str] = Field(
        default_factory=list, description="why a model has no mAP, and what does not count in it; one line each"
    )
    gate: Gate = Field(description="whether the outputs are the reference's but for float32 reassociation")
    tolerance: Gate | None = Field(description="of what does not claim to be exact, whether it is near enough to serve")

    @property
    def verdict(self) -> Judgement:
        """passed: the reference's answers; tolerated: near them, and claimed to be no more; else failed."""
        return _judgement(self.gate, self.tolerance)

    @property
    def reasons(self) -> list[str]:
        """Why it failed, one line per figure out of its limit; empty where it did not."""
        return (self.tolerance or self.gate).reasons


def _judgement(gate: Gate, tolerance: Gate | None) -> Judgement:
    if gate.passed:
        return "passed"
    return "tolerated" if tolerance is not None and tolerance.passed else "failed"
