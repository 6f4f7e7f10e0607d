"""One post-processing for all models and images."""

from detserver import postprocess
from detserver.recipes.recipe import Recipe

BATCHED = Recipe(postprocess="batched")


def test_it_gives_baselines_answers(has_parity):
    has_parity(BATCHED)


def test_its_slow_path_is_counted_once_for_a_batch(build, images, monkeypatch):
    slow = []
    built = build(BATCHED, note_slow_nms=lambda: slow.append(1))
    built.detect(images[:2])
    assert slow == []
    monkeypatch.setattr(postprocess, "_FIRST_CANDIDATES", 10)
    built.detect(images[:2])
    assert slow == [1]
