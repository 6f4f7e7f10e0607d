"""Batches grow as long as they pay."""

import pytest

from detserver.engine.worthwhile import WorthwhileSizes

KEY = ("grouped", "uniform")
SIZES = (1, 2, 4, 8, 16)


def run(sizes: WorthwhileSizes, image_s: dict[int, float], batches: int) -> list[int]:
    """The sizes of so many batches for which there are always images enough."""
    made = []
    for _ in range(batches):
        size = sizes.largest(KEY, SIZES)
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
