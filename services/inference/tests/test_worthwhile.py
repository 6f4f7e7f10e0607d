"""Batches grow as long as they pay."""

import pytest

from detserver.engine.worthwhile import WorthwhileSizes
from detserver.recipes.recipe import BATCH_SIZES as SIZES
from detserver.recipes.recipe import largest_fitting

KEY = ("grouped", "uniform")


def run(sizes: WorthwhileSizes, image_s: dict[int, float], batches: int, waiting: int = 16) -> list[int]:
    """The sizes of so many batches, while so many images wait."""
    made = []
    for _ in range(batches):
        size = largest_fitting(min(waiting, sizes.largest(KEY, SIZES)), SIZES)
        sizes.note(KEY, size, image_s[size])
        made.append(size)
    return made


@pytest.mark.parametrize(
    ("image_s", "best"),
    [
        ({1: 0.338, 2: 0.313, 4: 0.309, 8: 0.361, 16: 0.40}, 4),
        ({1: 0.641, 2: 0.647, 4: 0.761, 8: 0.867, 16: 0.90}, 1),
        ({1: 0.452, 2: 0.378, 4: 0.350, 8: 0.323, 16: 0.31}, 16),
    ],
)
def test_nearly_all_batches_have_the_size_that_is_fastest_for_each_image(image_s: dict[int, float], best: int):
    sizes = WorthwhileSizes()
    assert run(sizes, image_s, 1) == [16]
    run(sizes, image_s, 40)
    assert run(sizes, image_s, 400).count(best) >= 390


def test_a_size_that_never_waits_together_keeps_nobody_from_learning_that_smaller_ones_are_faster():
    sizes = WorthwhileSizes()
    image_s = {1: 0.338, 2: 0.313, 4: 0.309, 8: 0.361}
    run(sizes, image_s, 40, waiting=15)
    assert run(sizes, image_s, 400, waiting=15).count(4) >= 380


def test_a_size_between_that_is_slow_hides_none_that_is_fast():
    sizes = WorthwhileSizes()
    image_s = {1: 0.3, 2: 0.4, 4: 0.5, 8: 0.4, 16: 0.4}
    run(sizes, image_s, 3, waiting=1)
    run(sizes, image_s, 40)
    assert run(sizes, image_s, 400).count(1) >= 380


def test_what_was_slow_because_the_machine_was_busy_is_tried_again():
    sizes = WorthwhileSizes()
    run(sizes, {1: 0.1, 2: 0.2, 4: 0.3, 8: 0.4, 16: 0.5}, 60)
    assert sizes.largest(KEY, SIZES) == 1
    quiet = {1: 0.5, 2: 0.4, 4: 0.3, 8: 0.2, 16: 0.1}
    assert 16 in run(sizes, quiet, 2000)[-40:]


def test_others_are_not_learnt_from():
    sizes = WorthwhileSizes()
    run(sizes, {1: 0.1, 2: 0.2, 4: 0.3, 8: 0.4, 16: 0.5}, 60)
    assert sizes.largest(("grouped", "mixed"), SIZES) == 16
