"""Batches: the sizes that are built and those that arrive fit, and no image is run twice."""

import pytest
import torch
from same_answers import assert_equal

from detserver import postprocess
from detserver.implementations import Registry
from detserver.implementations.from_recipe import RecipeImpl
from detserver.postprocess import PostProcessor
from detserver.recipes.recipe import BATCH_SIZES, Recipe, largest_fitting
from detserver.recipes.techniques.graph import StaticBatch

CPU = torch.device("cpu")


@pytest.fixture
def folded(store, small) -> RecipeImpl:
    implementation = Registry().get("folded")(small, store, CPU)
    implementation.load()
    return implementation


@pytest.mark.parametrize(
    ("waiting", "taken"), [(1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (7, 4), (8, 8), (15, 8), (16, 16), (40, 16)]
)
def test_as_many_as_the_largest_size_that_they_fill_are_taken(waiting: int, taken: int):
    assert largest_fitting(waiting, BATCH_SIZES) == taken
    assert largest_fitting(waiting, (1,)) == 1


def test_any_number_of_images_is_run_in_pieces_without_padding(folded, images, expected, monkeypatch):
    sizes = []
    for built in set(folded._by_size.values()):
        detect = built.detect
        monkeypatch.setattr(built, "detect", lambda batch, detect=detect: (sizes.append(len(batch)), detect(batch))[1])
    assert_equal(folded.predict_batch(images[:7]), expected[:7])
    assert sizes == [4, 2, 1]
    assert folded.fitting(7) == 4


def test_warming_up_takes_the_fast_path_of_nms(store, small):
    implementation = Registry().get("postprocess")(small, store, CPU)
    implementation.load()
    implementation.predict(implementation.example())
    assert implementation.slow_nms == 0


@torch.inference_mode()
@pytest.mark.parametrize("rounds", [12, 1], ids=["settled", "not settled: all candidates on the host"])
def test_static_buffers_give_the_same_rows_for_every_batch(build, images, expected, rounds: int, monkeypatch):
    monkeypatch.setattr(postprocess, "_ROUNDS", rounds)
    plan = build(Recipe(postprocess="batched", fold=True))._plan
    slow = []
    postprocessor = PostProcessor(plan.model_set.models, CPU, lambda: slow.append(1))
    static = StaticBatch(plan, postprocessor, images[:2])
    for start in (0, 2, 0):
        rows = static.run(images[start : start + 2])
        assert_equal(postprocess.detections(plan.model_set.models, rows), expected[start : start + 2])
    assert bool(slow) == (rounds == 1)
