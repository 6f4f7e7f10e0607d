"""BiFPN's weighted sums of all members, against effdet's."""

import pytest
import torch
from effdet.efficientdet import FpnCombine

from detserver.models.model_sets import BUILT_IN
from detserver.models.weights import WeightsStore
from detserver.recipes.folding import fold_batch_norm
from detserver.recipes.grouping import group


@pytest.mark.parametrize("method", ["fastattn", "attn", "sum"])
@torch.inference_mode()
def test_every_member_has_its_own_weights(method: str):
    torch.manual_seed(0)
    info = [{"num_chs": 8, "size": (16, 16)}, {"num_chs": 8, "size": (8, 8)}, {"num_chs": 8, "size": (4, 4)}]
    own = [FpnCombine(info, 8, (0, 1, 2), (8, 8), pad_type="same", weight_method=method) for _ in range(3)]
    for module in own:
        if module.edge_weights is not None:
            module.edge_weights.data = torch.randn(3) + 0.5  # a negative one counts as 0 in fastattn
    features = [[torch.randn(2, 8, *level["size"]) for level in info] for _ in own]
    expected = torch.cat([module(maps) for module, maps in zip(own, features, strict=True)], dim=1)
    side_by_side = [torch.cat(level, dim=1) for level in zip(*features, strict=True)]
    assert torch.allclose(group(own)(side_by_side), expected, atol=1e-5)


@torch.inference_mode()
@pytest.mark.slow
def test_a_whole_bifpn_with_its_resampling(store: WeightsStore):
    models = [fold_batch_norm(store.model(spec)) for spec in BUILT_IN[1].models]
    shapes = [(40, 64), (112, 32), (320, 16)]
    features = [[torch.randn(1, channels, size, size) for channels, size in shapes] for _ in models]
    expected = [model.fpn(list(maps)) for model, maps in zip(models, features, strict=True)]
    grouped = group([model.fpn for model in models])
    found = grouped([torch.cat(level, dim=1) for level in zip(*features, strict=True)])
    for level, own in zip(found, zip(*expected, strict=True), strict=True):
        reference = torch.cat(own, dim=1)
        assert (level - reference).abs().max() < 1e-4 * reference.abs().max()
