"""BiFPN's weighted sums, with weights of each member."""

from collections.abc import Sequence

import torch
from effdet.efficientdet import FpnCombine
from torch import nn

from detserver.errors import CannotRun
from detserver.recipes.grouping.rules import group, rule


class GroupedFpnCombine(nn.Module):
    """effdet's `FpnCombine` of N members.

    Args:
        resample: grouped; one module per input.
        offsets: which of the feature maps it takes.
        weights: normalised, (inputs, N x C, 1, 1).
    """

    def __init__(self, resample: nn.ModuleDict, offsets: Sequence[int], weights: torch.Tensor) -> None:
        super().__init__()
        self.resample = resample
        self.offsets = tuple(offsets)
        self.weights = nn.Parameter(weights, requires_grad=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """The weighted sum, (B, N x C, H, W), of some of the feature maps."""
        nodes: list[torch.Tensor] = [
            resample(features[offset]) for offset, resample in zip(self.offsets, self.resample.values(), strict=True)
        ]
        total = nodes[0] * self.weights[0]
        for node, weight in zip(nodes[1:], self.weights[1:], strict=True):
            total = torch.addcmul(total, node, weight)
        return total


@rule(FpnCombine)
def group_fpn_combine(modules: Sequence[FpnCombine]) -> GroupedFpnCombine:
    """Fusion weights are constants by now: normalised once, repeated over the channels of their member."""
    resample = group([module.resample for module in modules])
    assert isinstance(resample, nn.ModuleDict)
    channels = next(iter(modules[0].resample.values())).out_channels
    weights = torch.stack([_normalised(module) for module in modules], dim=1).repeat_interleave(channels, dim=1)
    return GroupedFpnCombine(resample, modules[0].inputs_offsets, weights[..., None, None])


def _normalised(module: FpnCombine) -> torch.Tensor:
    """As `FpnCombine.forward` does in each call; (inputs,)."""
    if module.weight_method == "sum":
        return torch.ones(len(module.inputs_offsets))
    weights: torch.Tensor = module.edge_weights.detach()
    if module.weight_method == "attn":
        return weights.softmax(dim=0)
    if module.weight_method == "fastattn":
        positive = weights.relu()
        return positive / (positive.sum() + 0.0001)
    raise CannotRun(f"cannot be grouped: a fusion of method {module.weight_method!r}")
