"""Class heads of different width, padded and cut again."""

import pytest
import torch

from detserver.models.model_sets import BUILT_IN
from detserver.models.weights import WeightsStore
from detserver.recipes.grouping.heads import classes_of, cut_classes, pad_class_heads


@pytest.mark.slow
@torch.inference_mode()
def test_padded_and_cut_again_is_the_head_itself(store: WeightsStore):
    specs = BUILT_IN[1].models
    features = [torch.randn(2, 64, size, size) for size in (64, 32, 16, 8, 4)]
    expected = [store.model(spec).class_net(features) for spec in specs]
    models = [store.model(spec) for spec in specs]
    pad_class_heads(models)
    assert {model.class_net.predict.conv_pw.weight.shape for model in models} == {(9 * 90, 64, 1, 1)}
    for model, reference in zip(models, expected, strict=True):
        found = cut_classes(model.class_net(features), classes_of(model), 90)
        for level, own in zip(found, reference, strict=True):
            assert level.shape == own.shape
            assert torch.allclose(level, own, atol=1e-5)
