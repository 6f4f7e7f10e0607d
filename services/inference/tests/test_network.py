"""Batches: cut into pieces, and through the buffers of a CUDA graph, which work without one."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from detserver import postprocess
from detserver.implementations.folded import Folded
from detserver.models.model_sets import BUILT_IN, ModelSet
from detserver.models.weights import WeightsStore
from detserver.preprocess import PreparedImage, prepare
from detserver.recipes.cuda_graph import StaticBatch
from detserver.recipes.network import pieces

SET = ModelSet("two sizes", (BUILT_IN[1].models[1], BUILT_IN[0].models[1]))


@pytest.fixture(scope="module")
def images(photos: list[Path]) -> list[PreparedImage]:
    return [prepare(Image.open(photo).convert("RGB"), SET.inputs) for photo in photos]


@pytest.fixture(scope="module")
def implementation(store: WeightsStore) -> Folded:
    folded = Folded(SET, store, torch.device("cpu"))
    folded.load()
    return folded


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (3, (), [[0, 1, 2]]),
        (3, (1,), [[0], [1], [2]]),
        (3, (1, 4), [[0, 1, 2, 2]]),
        (7, (1, 4), [[0, 1, 2, 3], [4, 5, 6, 6]]),
        (5, (1, 4), [[0, 1, 2, 3], [4]]),
    ],
)
def test_a_batch_is_cut_into_the_sizes_there_are(count: int, sizes: tuple[int, ...], expected: list[list[int]]):
    assert [list(piece) for piece in pieces(list(range(count)), sizes)] == expected


@torch.inference_mode()
def test_padding_and_pieces_change_no_answer(implementation: Folded, images: list[PreparedImage], monkeypatch):
    alone = [implementation.predict(image) for image in images[:3]]
    monkeypatch.setattr(implementation, "batch_sizes", lambda: (2,))
    for ours, theirs in zip(implementation.predict_batch(images[:3]), alone, strict=True):
        for mine, own in zip(ours, theirs, strict=True):
            assert mine.labels.tolist() == own.labels.tolist()
            assert abs(mine.scores - own.scores).max() < 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("rounds", [12, 1], ids=["settled", "not settled: all candidates on the host"])
def test_static_buffers_give_the_same_rows_for_every_batch(implementation: Folded, images, rounds: int, monkeypatch):
    monkeypatch.setattr(postprocess, "_ROUNDS", rounds)
    static = StaticBatch(implementation, images[:2])
    for batch in (images[:2], images[2:4], images[:2]):
        assert torch.equal(static.run(batch), implementation.detect(batch))
