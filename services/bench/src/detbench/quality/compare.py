"""Comparing the outputs of an implementation with the reference, and judging whether they are the same answers."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from detbench.api.schemas import ModelWeights
from detbench.errors import DatasetError, MalformedOutput
from detbench.quality.coco_map import Annotations, difference_interval
from detbench.quality.matching import Detections, ErrorSums, total
from detbench.quality.outputs import ImageOutput
from detbench.results.quality import Comparison, ErrorFigures, Gate, GroundTruth

# What float32 reassociation leaves, with room: boxes of up to 10^3 px in float32 have a resolution of 6e-5 px, and
# logits that differ by 1e-5 change a score by 2.5e-6 at most. The largest differences that were seen on a CPU are
# 0.001 px and 1e-4: a mean over hundreds of pairs hides one that is wrong.
BOXES_MSE_LIMIT = 1e-4
SCORES_MSE_LIMIT = 1e-9
BOX_DIFFERENCE_LIMIT_PX = 0.05
SCORE_DIFFERENCE_LIMIT = 1e-3

# Near enough to serve, for what does not claim to be exact: docs/measuring.md says why. bfloat16 on a trained Lite0 has
# a mean IoU of 0.924, a scores MSE of 9e-4 and a labels accuracy of 0.867 on 63 photographs, and loses no mAP.
TOLERATED_MEAN_IOU = 0.9
TOLERATED_PAIRS_SCORES_MSE = 0.05**2
TOLERATED_LABELS_ACCURACY = 0.8
TOLERATED_MAP_LOSS = 0.01


def compare(
    reference: Sequence[ImageOutput],
    candidate: Sequence[ImageOutput],
    *,
    implementation: str,
    model_set: str,
    exact: bool,
    weights: Sequence[ModelWeights],
    annotations: Path | None,
    map_loss: float = TOLERATED_MAP_LOSS,
) -> Comparison:
    """Output error of `candidate`, per model of the set and over all of them.

    Args:
        reference: outputs of `baseline`, one per image.
        candidate: outputs of `implementation` for the same images in the same order.
        exact: whether the implementation claims the reference's answers.
        weights: the models of the set.
        annotations: COCO annotation file of the images, where there is one; what is wrong with it is noted.
        map_loss: how much of mAP what does not claim to be exact may lose.

    Raises:
        MalformedOutput: other images, or an image without one of the models.
    """
    if [output.sha256 for output in reference] != [output.sha256 for output in candidate]:
        raise MalformedOutput(f"the outputs of {implementation} are not of the reference's images")
    sums = {model.model_name: sums_of(reference, candidate, model.model_name) for model in weights}
    figures = {name: each.figures() for name, each in sums.items()}
    ground_truth, notes = _ground_truth(reference, candidate, weights, annotations)
    gate, tolerance = gates(figures, exact, ground_truth, map_loss)
    return Comparison(
        implementation=implementation,
        model_set=model_set,
        exact=exact,
        images=len(reference),
        batch_sizes=dict(sorted(Counter(output.batch_size for output in candidate).items())),
        per_model=figures,
        overall=total(sums.values()).figures(),
        ground_truth=ground_truth,
        ground_truth_notes=notes,
        gate=gate,
        tolerance=tolerance,
    )


def gates(
    figures: Mapping[str, ErrorFigures],
    exact: bool,
    ground_truth: Mapping[str, GroundTruth],
    map_loss: float = TOLERATED_MAP_LOSS,
) -> tuple[Gate, Gate | None]:
    """Whether the figures of all models are those of the reference's answers, and whether near enough to serve.

    The second is None of what claims to be exact; mAP counts in it for the models in `ground_truth`.
    """
    gate = _gate(f"{name}: {reason}" for name, each in figures.items() for reason in _not_the_same(each))
    if exact:
        return gate, None
    return gate, _gate(
        f"{name}: {reason}"
        for name, each in figures.items()
        for reason in _not_near(each, ground_truth.get(name), map_loss)
    )


def sums_of(reference: Sequence[ImageOutput], candidate: Sequence[ImageOutput], model_name: str) -> ErrorSums:
    """The error of one model over images: outputs of both for the same images in the same order.

    Raises:
        MalformedOutput: an image without the model.
    """
    sums = ErrorSums()
    for ours, theirs in zip(reference, candidate, strict=True):
        sums.add_image(_of_model(ours, model_name), _of_model(theirs, model_name))
    return sums


def _of_model(output: ImageOutput, model_name: str) -> Detections:
    found = [answer for answer in output.detections if answer.model_name == model_name]
    if len(found) != 1:
        raise MalformedOutput(f"{output.image}: {len(found)} outputs of {model_name} instead of one")
    return Detections.of(found[0])


def _gate(reasons: Iterable[str]) -> Gate:
    found = list(reasons)
    return Gate(passed=not found, reasons=found)


def _not_the_same(figures: ErrorFigures) -> Iterator[str]:
    """Why these are not the reference's answers; nothing where they are."""
    if not figures.boxes_mse < BOXES_MSE_LIMIT:
        yield f"boxes MSE {figures.boxes_mse:.1e} px² is not below {BOXES_MSE_LIMIT:.0e}"
    if not figures.scores_mse < SCORES_MSE_LIMIT:
        yield f"scores MSE {figures.scores_mse:.1e} is not below {SCORES_MSE_LIMIT:.0e}"
    yield from beyond_rounding(figures)


def beyond_rounding(figures: ErrorFigures) -> Iterator[str]:
    """Which detections differ by more than float32 reassociation leaves of a single one; nothing where none does."""
    if (box := figures.largest_box_difference_px or 0.0) >= BOX_DIFFERENCE_LIMIT_PX:
        yield f"a coordinate differs by {box:.2g} px, not by less than {BOX_DIFFERENCE_LIMIT_PX:g}"
    if (score := figures.largest_score_difference or 0.0) >= SCORE_DIFFERENCE_LIMIT:
        yield f"a score differs by {score:.1e}, not by less than {SCORE_DIFFERENCE_LIMIT:.0e}"
    if figures.labels_accuracy != 1.0:
        yield f"labels accuracy {figures.labels_accuracy:.4f} is not 1"
    if figures.missed or figures.spurious:
        yield f"{figures.missed} detections missed, {figures.spurious} spurious"


def _not_near(figures: ErrorFigures, truth: GroundTruth | None, map_loss: float) -> Iterator[str]:
    """Why these are too far from the reference's answers to be served in their place; nothing where they are not."""
    if figures.mean_iou < TOLERATED_MEAN_IOU:
        yield f"mean IoU of the pairs {figures.mean_iou:.3f} is below {TOLERATED_MEAN_IOU:g}"
    if (scores := figures.pairs_scores_mse or 0.0) > TOLERATED_PAIRS_SCORES_MSE:
        yield f"scores MSE of the pairs {scores:.1e} is above {TOLERATED_PAIRS_SCORES_MSE:.1e}"
    if figures.labels_accuracy < TOLERATED_LABELS_ACCURACY:
        yield (
            f"labels accuracy {figures.labels_accuracy:.3f} is below {TOLERATED_LABELS_ACCURACY:g} "
            f"({figures.missed} detections missed, {figures.spurious} spurious)"
        )
    if truth is not None and truth.difference < -map_loss:
        yield f"mAP {truth.map:.4f} is more than {map_loss:g} below the reference's {truth.map_baseline:.4f}"


def _ground_truth(
    reference: Sequence[ImageOutput],
    candidate: Sequence[ImageOutput],
    weights: Sequence[ModelWeights],
    path: Path | None,
) -> tuple[dict[str, GroundTruth], list[str]]:
    """mAP of the models whose classes are the dataset's, those with as many as its highest category id; and notes.

    Annotations that cannot be used cost the mAP and never the comparison: the notes say why a model has none.
    """
    if path is None:
        return {}, []
    try:
        annotations = Annotations(path)
    except DatasetError as error:
        return {}, [f"no mAP: {error}"]
    found: dict[str, GroundTruth] = {}
    notes: dict[str, None] = {}  # in their order, each once
    for model in weights:
        if model.num_classes != annotations.classes:
            notes[
                f"no mAP of {model.model_name}: its labels go up to {model.num_classes}, the category ids of "
                f"{path.name} to {annotations.classes}"
            ] = None
            continue
        try:
            ours = annotations.evaluated(reference, model.model_name)
            theirs = annotations.evaluated(candidate, model.model_name)
        except DatasetError as error:
            notes[f"no mAP: {error}"] = None
            continue
        low, high = difference_interval(ours, theirs)
        found[model.model_name] = GroundTruth(
            map=theirs.map,
            ap50=theirs.ap50,
            ap75=theirs.ap75,
            map_baseline=ours.map,
            difference=theirs.map - ours.map,
            low=low,
            high=high,
        )
    return found, [*notes, *(annotations.notes(candidate) if found else ())]
