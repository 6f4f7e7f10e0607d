"""The memory format channels_last."""

import pytest
import torch

from detserver.models.scenes import photograph
from detserver.preprocess import prepare
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
    for count in (1, 2):
        for pixels in plan.inputs(images[:count]).values():
            assert len(pixels) == count
            assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_one_image_in_the_layout_that_is_wanted_is_not_copied_and_its_network_sees_the_layout(build, images):
    plan = build(CHANNELS_LAST)._plan
    prepared = prepare(photograph(), plan.model_set.inputs, torch.channels_last)
    for config, pixels in plan.inputs([prepared]).items():
        assert pixels.data_ptr() == prepared.inputs[config].pixels.data_ptr()
        conv = torch.nn.functional.conv2d(pixels, torch.ones(8, 3, 3, 3).contiguous(memory_format=torch.channels_last))
        assert conv.is_contiguous(memory_format=torch.channels_last)
