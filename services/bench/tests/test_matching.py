"""Output error, by hand-computed examples."""

import numpy as np
import pytest

from detbench.quality.matching import Detections, ErrorSums, assign, iou, total


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def figures(reference: Detections, candidate: Detections):
    sums = ErrorSums()
    sums.add_image(reference, candidate)
    return sums.figures()


NONE = detections()
CUP = (0.0, 0.0, 10.0, 10.0, 0.9, 1)
SPOON = (50.0, 50.0, 60.0, 70.0, 0.8, 2)


def random_detections(count: int, seed: int) -> Detections:
    random = np.random.default_rng(seed)
    low = random.uniform(0, 500, (count, 2))
    boxes = np.hstack([low, low + random.uniform(5, 100, (count, 2))])
    return Detections(boxes, np.sort(random.uniform(0, 1, count))[::-1], random.integers(1, 91, count))


def test_iou_of_known_boxes():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], dtype=np.float64)
    assert iou(boxes[:1], boxes) == pytest.approx(np.array([[1, 50 / 150, 0]]))


def test_boxes_that_were_clipped_to_a_line_are_paired():
    # What effdet finds in the padding under a picture of 300 px; rounding may leave it a hair's breadth.
    line, hair = (20.0, 300.0, 80.0, 300.0), (20.0, 299.99997, 80.0, 300.0)
    beside, above = (200.0, 300.0, 260.0, 300.0), (20.0, 290.0, 80.0, 290.0)
    for partner in (line, hair):
        assert figures(detections((*line, 0.9, 1)), detections((*partner, 0.9, 1))).missed == 0
    for other in (beside, above):
        assert figures(detections((*line, 0.9, 1)), detections((*other, 0.9, 1))).missed == 1


def test_equal_outputs_have_no_error():
    found = figures(detections(CUP, SPOON), detections(CUP, SPOON))
    assert (found.boxes_mse, found.scores_mse, found.labels_accuracy, found.mean_iou) == (0, 0, 1, 1)
    assert (found.pairs, found.missed, found.spurious) == (2, 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_order_does_not_matter(seed: int):
    reference = random_detections(100, seed)
    order = np.random.default_rng(seed).permutation(100)
    candidate = Detections(reference.boxes[order], reference.scores[order], reference.labels[order])
    found = figures(reference, candidate)
    assert (found.boxes_mse, found.scores_mse, found.labels_accuracy, found.missed, found.spurious) == (0, 0, 1, 0, 0)


def test_classes_at_one_box_are_paired_by_label_and_score():
    # As random weights answer: one anchor, many classes, and classes that stand there twice.
    rows = [(10.0, 10.0, 60.0, 60.0, 0.2 + 0.05 * n, 1 + n % 5) for n in range(15)]
    found = figures(detections(*rows), detections(*reversed(rows)))
    assert (found.boxes_mse, found.scores_mse, found.labels_accuracy) == (0, 0, 1)


def test_a_shifted_box_counts_by_its_mean_squared_coordinates():
    shifted = (1.0, 0.0, 11.0, 10.0, 0.7, 1)  # x by 1: (1 + 0 + 1 + 0) / 4; score by 0.2
    found = figures(detections(CUP), detections(shifted))
    assert found.boxes_mse == pytest.approx(0.5)
    assert found.scores_mse == pytest.approx(0.04)
    assert found.mean_iou == pytest.approx(90 / 110)


def test_a_missed_detection_counts_against_a_zero_box_and_a_zero_score():
    found = figures(detections(CUP, SPOON), detections(CUP))
    # SPOON: (50² + 50² + 60² + 70²) / 4 = 3375, over two items
    assert found.boxes_mse == pytest.approx(3375 / 2)
    assert found.scores_mse == pytest.approx(0.64 / 2)
    assert (found.labels_accuracy, found.missed, found.spurious) == (0.5, 1, 0)


def test_a_spurious_detection_counts_like_a_missed_one():
    assert figures(detections(CUP), detections(CUP, SPOON)).boxes_mse == pytest.approx(3375 / 2)


def test_boxes_that_hardly_overlap_are_no_pair():
    elsewhere = (8.0, 0.0, 18.0, 10.0, 0.9, 1)
    found = figures(detections(CUP), detections(elsewhere))
    assert (found.pairs, found.missed, found.spurious, found.mean_iou, found.labels_accuracy) == (0, 1, 1, 0, 0)


def test_another_label_is_a_pair_that_is_not_accurate():
    found = figures(detections(CUP, SPOON), detections(CUP, (*SPOON[:5], 7)))
    assert (found.pairs, found.labels_accuracy, found.boxes_mse) == (2, 0.5, 0)


def test_nothing_on_either_side_is_no_error():
    found = figures(NONE, NONE)
    assert (found.boxes_mse, found.scores_mse, found.labels_accuracy, found.mean_iou) == (0, 0, 1, 1)


def test_nothing_against_something_is_all_missed():
    found = figures(detections(CUP), NONE)
    assert (found.boxes_mse, found.labels_accuracy, found.mean_iou, found.missed) == (50, 0, 0, 1)


def test_detections_below_the_threshold_do_not_count():
    assert figures(detections(CUP, (*SPOON[:4], 0.0999, 2)), detections(CUP)).missed == 0


@pytest.mark.parametrize("swap", [False, True])
def test_a_score_that_crosses_the_threshold_by_rounding_counts_on_neither_side(swap: bool):
    above, below = detections(CUP, (*SPOON[:4], 0.10003, 2)), detections(CUP, (*SPOON[:4], 0.09998, 2))
    found = figures(below, above) if swap else figures(above, below)
    assert (found.missed, found.spurious, found.boxes_mse, found.labels_accuracy) == (0, 0, 0, 1)
    assert (found.reference_detections, found.candidate_detections) == (1, 1)


@pytest.mark.parametrize(
    "other", [NONE, detections((*SPOON[:4], 0.0995, 2)), detections((0.0, 0.0, 9.0, 9.0, 0.09998, 2))]
)
def test_a_score_near_the_threshold_without_its_partner_is_missed(other: Detections):
    assert figures(detections((*SPOON[:4], 0.10003, 2)), other).missed == 1


def test_the_assignment_has_the_largest_total_overlap_not_the_greedy_one():
    # Greedily a-x (0.9) leaves b-y at 0; together a-y and b-x are worth more.
    a, b = (0.0, 0.0, 100.0, 10.0), (0.0, 0.0, 80.0, 10.0)
    x, y = (0.0, 0.0, 90.0, 10.0), (30.0, 0.0, 100.0, 10.0)
    reference = detections((*a, 0.9, 1), (*b, 0.8, 1))
    candidate = detections((*x, 0.9, 1), (*y, 0.8, 1))
    rows, columns, overlaps = assign(reference, candidate)
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {0: 1, 1: 0}
    assert overlaps.sum() == pytest.approx(0.7 + 80 / 90)


def test_models_are_pooled_over_their_detections():
    first, second = ErrorSums(), ErrorSums()
    first.add_image(detections(CUP), detections((1.0, 0.0, 11.0, 10.0, 0.9, 1)))
    second.add_image(detections(CUP, SPOON, (200.0, 0.0, 300.0, 90.0, 0.5, 3)), NONE)
    found = total([first, second]).figures()
    third = (200**2 + 0 + 300**2 + 90**2) / 4
    assert found.boxes_mse == pytest.approx((0.5 + 50 + 3375 + third) / 4)
    assert (found.pairs, found.missed, found.labels_accuracy) == (1, 3, 0.25)
