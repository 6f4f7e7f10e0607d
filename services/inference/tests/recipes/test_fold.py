"""Batch norms folded into convolutions."""

import pytest
import torch
from same_answers import assert_raw_close
from torch import nn

from detserver.errors import CannotRun
from detserver.models.model_sets import BUILT_IN
from detserver.models.weights import WeightsStore
from detserver.recipes.folding import fold_batch_norm
from detserver.recipes.recipe import Recipe

D0 = BUILT_IN[0].models[0]


def test_it_gives_baselines_answers(has_parity):
    has_parity(Recipe(fold=True))


@torch.inference_mode()
def test_no_batch_norm_is_left_and_the_outputs_are_the_same(store: WeightsStore):
    pixels = torch.randn(2, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    expected = store.model(D0)(pixels)
    folded = fold_batch_norm(store.model(D0))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert_raw_close([folded(pixels)], [expected])


def test_a_batch_norm_that_no_rule_knows_is_named(store: WeightsStore):
    model = store.model(D0)
    model.fpn.cell.add_module("extra", nn.Sequential(nn.BatchNorm2d(64)).eval())
    with pytest.raises(CannotRun, match=r"fpn\.cell\.extra\.0 \(BatchNorm2d\)"):
        fold_batch_norm(model)
