"""Arithmetic of less than float32."""

import pytest
import torch

from detserver.recipes.build import why_not
from detserver.recipes.recipe import Recipe
from detserver.recipes.techniques.precision import _tf32

CPU = torch.device("cpu")


def test_bfloat16_is_the_networks_precision_and_shows_in_the_answers(build, images, expected):
    built = build(Recipe(postprocess="batched", fold=True, precision="bf16"))
    assert {p.dtype for network in built._plan.networks for p in network.module.parameters()} == {torch.bfloat16}
    found = built.detect(images[:2])
    for ours, theirs in zip(found, expected, strict=False):
        for mine, own in zip(ours, theirs, strict=True):
            assert mine.boxes.dtype == own.boxes.dtype
            assert 1e-5 < abs(mine.scores[0] - own.scores[0]) < 0.1


def test_tf32_is_allowed_around_a_call_and_nowhere_else():
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in flags]
    with _tf32():
        assert [each.allow_tf32 for each in flags] == [True, True]
    with pytest.raises(ZeroDivisionError), _tf32():
        _ = 1 / 0
    assert [each.allow_tf32 for each in flags] == before


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (Recipe(precision="fp16"), "float16 needs a GPU"),
        (Recipe(precision="tf32"), "TF32 needs an NVIDIA GPU of compute capability 8.0"),
        (Recipe(precision="int8"), "for backend=openvino only"),
    ],
    ids=str,
)
def test_where_it_cannot_be_the_reason_is_told(recipe: Recipe, reason: str):
    assert reason in str(why_not(recipe, CPU))


def test_tf32_is_refused_on_a_gpu_that_does_not_have_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "8.0" in str(why_not(Recipe(precision="tf32"), torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert why_not(Recipe(precision="tf32"), torch.device("cuda")) is None
