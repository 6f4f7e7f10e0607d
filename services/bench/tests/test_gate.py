"""What the gate and the tolerance let through, on outputs that are made by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from stub_server import BOX, StubServer, entry

from detbench.api.schemas import ModelDetections, ModelWeights
from detbench.quality.compare import compare
from detbench.quality.outputs import ImageOutput
from detbench.results.quality import Comparison

MODELS = ("first", "second")
PER_IMAGE = 100

Boxes = list[tuple[float, float, float, float]]


def grid() -> Boxes:
    """100 boxes of 50 px that do not touch, in an image of 1,000 px."""
    corners = [(100.0 * column, 100.0 * row) for row in range(10) for column in range(10)]
    return [(x, y, x + 50, y + 50) for x, y in corners]


def found(model: str, **changes: object) -> ModelDetections:
    plain = {"boxes": grid(), "scores": [0.5] * PER_IMAGE, "labels": [1] * PER_IMAGE}
    return ModelDetections.model_validate({"model_name": model, **plain, **changes})


def outputs(*second: ModelDetections, images: int = 1) -> list[ImageOutput]:
    """The plain answer of both models in every image; `second` is what the second model answers in the first images."""
    answers = [*second, *(found("second") for _ in range(images - len(second)))]
    return [
        ImageOutput(image=f"{n}.jpg", sha256=str(n), detections=[found("first"), answer])
        for n, answer in enumerate(answers)
    ]


def compared(candidate: Sequence[ImageOutput], exact: bool = True, annotations: Path | None = None) -> Comparison:
    weights = [
        ModelWeights(
            **{"model_name": name, "architecture": "tf_efficientdet_d0", "num_classes": 1, "image_size": (512, 512)},
            **{"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "fill_color": (128,) * 3},
            **{"configuration": {}, "source": "local", "fingerprint": "0" * 64},
        )
        for name in MODELS
    ]
    names = {"implementation": "candidate", "model_set": "mine", "exact": exact}
    reference = outputs(images=len(candidate))
    return compare(reference, candidate, **names, weights=weights, annotations=annotations)


def moved(by: float, count: int = PER_IMAGE) -> Boxes:
    """The grid with the first `count` boxes moved to the right, px."""
    return [(x1 + by, y1, x2 + by, y2) for x1, y1, x2, y2 in grid()[:count]] + grid()[count:]


def test_equal_outputs_pass():
    comparison = compared(outputs())
    assert (comparison.gate.passed, comparison.verdict, comparison.tolerance) == (True, "passed", None)


def test_one_coordinate_that_the_mean_hides_fails():
    boxes = grid()
    boxes[7] = (*boxes[7][:3], boxes[7][3] + 0.06)
    comparison = compared(outputs(found("second", boxes=boxes)))
    assert comparison.per_model["second"].boxes_mse < 1e-4
    assert comparison.gate.reasons == ["second: a coordinate differs by 0.06 px, not by less than 0.05"]


def test_one_score_that_the_mean_hides_fails():
    scores = [0.5015, *[0.5] * (PER_IMAGE - 1)]
    comparison = compared(outputs(found("second", scores=scores), images=30))
    assert comparison.per_model["second"].scores_mse < 1e-9
    assert comparison.gate.reasons == ["second: a score differs by 1.5e-03, not by less than 1e-03"]


def test_the_largest_differences_are_those_of_any_model_and_image():
    boxes, scores = moved(0.01, 1), [0.5002, *[0.5] * (PER_IMAGE - 1)]
    comparison = compared(outputs(found("second", boxes=boxes), found("second", scores=scores), images=3))
    assert comparison.gate.passed
    for figures in (comparison.overall, comparison.per_model["second"]):
        assert figures.largest_box_difference_px == pytest.approx(0.01)
        assert figures.largest_score_difference == pytest.approx(2e-4)
    assert comparison.per_model["first"].largest_box_difference_px == 0


def test_the_error_of_pairs_is_told_apart_from_what_is_missed_and_spurious():
    few = {"boxes": moved(2.0)[:99], "scores": [0.6] * 99, "labels": [1] * 99}
    figures = compared(outputs(found("second", **few))).per_model["second"]
    assert figures.pairs_boxes_mse == pytest.approx(2.0)  # (2² + 0 + 2² + 0) / 4
    assert figures.pairs_scores_mse == pytest.approx(0.01)
    assert (figures.pairs, figures.missed, figures.spurious) == (99, 1, 0)
    assert figures.boxes_mse > 1000  # of the one that is missed, at 900 px


def test_without_a_pair_there_is_no_error_of_pairs():
    nothing = {"boxes": [], "scores": [], "labels": []}
    figures = compared(outputs(found("second", **nothing))).per_model["second"]
    assert (figures.pairs_boxes_mse, figures.largest_box_difference_px, figures.missed) == (None, None, PER_IMAGE)


def test_near_answers_are_tolerated_of_what_does_not_claim_more():
    near = outputs(found("second", boxes=moved(2.0), scores=[0.52] * PER_IMAGE, labels=[2] * 19 + [1] * 81))
    assert compared(near, exact=False).verdict == "tolerated"
    assert compared(near, exact=True).verdict == "failed"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"boxes": moved(3.0)}, "mean IoU of the pairs 0.887 is below 0.9"),
        ({"scores": [0.56] * PER_IMAGE}, "scores MSE of the pairs 3.6e-03 is above 2.5e-03"),
        ({"labels": [2] * 21 + [1] * 79}, "labels accuracy 0.790 is below 0.8 (0 detections missed, 0 spurious)"),
        ({"boxes": moved(50.0, 21)}, "labels accuracy 0.790 is below 0.8 (21 detections missed, 21 spurious)"),
    ],
)
def test_what_is_too_far_is_not_tolerated(changes: dict[str, object], reason: str):
    comparison = compared(outputs(found("second", **changes)), exact=False)
    assert comparison.verdict == "failed"
    assert comparison.tolerance is not None
    (said,) = comparison.tolerance.reasons
    assert said == f"second: {reason}"


def test_a_loss_of_more_than_a_point_of_map_is_not_tolerated(tmp_path: Path):
    boxes = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": [x, y, 50, 50], "area": 2500, "iscrowd": 0}
        for n, (x, y, _, _) in enumerate(grid(), 1)
    ]
    truth = {"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for gone, verdict in ((0, "passed"), (8, "failed")):
        rest = PER_IMAGE - gone
        fewer = found("second", boxes=grid()[:rest], scores=[0.5] * rest, labels=[1] * rest)
        comparison = compared(outputs(fewer), exact=False, annotations=tmp_path / "truth.json")
        assert comparison.verdict == verdict
    assert comparison.tolerance is not None
    (reason,) = comparison.tolerance.reasons
    assert reason.startswith("second: mAP 0.9")
    assert reason.endswith("more than 0.01 below the reference's 1.0000")


def test_held_to_their_limits_all_keep_to_the_tolerance(detbench, tmp_path: Path, capsys):
    with StubServer(entry("baseline"), entry("near", exact=False), entry("far", exact=False)) as stub:
        stub.boxes = {"near": [BOX[0] + 1, *BOX[1:]], "far": [BOX[0] + 20, *BOX[1:]]}
        assert detbench("reference", "--host", stub.host) == 0
        these = ("compare", "--host", stub.host, "--implementations", "baseline", "near")
        assert detbench(*these, "--gate", "all") == 0
        assert detbench(*these, "far") == 0
        capsys.readouterr()
        assert detbench(*these, "far", "--gate", "all") == 1
    printed = capsys.readouterr().out
    rows = {row[0]: row[-1] for line in printed.splitlines() if (row := line.split())[1:2] == ["all"]}
    assert rows == {"baseline": "passed", "near": "tolerated", "far": "failed"}
    assert "far: tf_efficientdet_d0: mean IoU of the pairs 0.800 is below 0.9" in printed
