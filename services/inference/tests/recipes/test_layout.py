"""The memory format channels_last."""

import pytest
import torch

from detserver.recipes.recipe import Recipe

CHANNELS_LAST = Recipe(layout="channels_last")
GROUPED = Recipe(layout="channels_last", fold=True, stack="grouped", postprocess="batched")


def test_it_gives_baselines_answers(has_parity):
    has_parity(CHANNELS_LAST)


@pytest.mark.parametrize("recipe", [CHANNELS_LAST, GROUPED], ids=str)
def test_networks_and_inputs_are_in_it(build, images, recipe: Recipe):
    plan = build(recipe)._plan
    weights = [p for network in plan.networks for p in network.module.parameters() if p.dim() == 4 and p.shape[-1] > 1]
    assert len(weights) > 50
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in plan.inputs(images[:2]))
