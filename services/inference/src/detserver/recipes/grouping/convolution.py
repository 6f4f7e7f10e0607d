"""Convolutions of all members in one call."""

import copy
from collections.abc import Sequence

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from detserver.errors import CannotRun
from detserver.recipes.grouping.rules import concatenated, rule


class PointwiseConv(nn.Module):
    """A 1x1 convolution of N members as one batched matrix product, (N, C_out, C_in) x (B, N, C_in, H x W).

    Args:
        conv: the grouped convolution that it does the work of.
        members: N.
    """

    def __init__(self, conv: nn.Conv2d, members: int) -> None:
        super().__init__()
        self.members = members
        self.weight = nn.Parameter(conv.weight.detach().view(members, -1, conv.in_channels // members), False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().view(members, -1, 1), False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N x C_out, H, W) from (B, N x C_in, H, W)."""
        batch, _, height, width = x.shape
        planes = x.reshape(batch, self.members, -1, height * width)
        if self.bias is None:
            product = self.weight @ planes
        elif batch == 1:
            product = torch.baddbmm(self.bias, self.weight, planes[0])
        else:
            product = (self.weight @ planes).add_(self.bias)
        return product.view(batch, -1, height, width)


@rule(nn.Conv2d, Conv2dSame)
def group_convolution(modules: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One convolution with the groups of all members."""
    first = modules[0]
    grouped = _concatenated_convolution(modules)
    grouped.in_channels = first.in_channels * len(modules)
    grouped.groups = first.groups * len(modules)
    return grouped


def group_shared_input(modules: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One convolution whose members all read the same input, (B, C, H, W): a wider one, without more groups."""
    if modules[0].groups != 1:
        raise CannotRun("cannot be grouped: a first convolution that is itself grouped")
    return _concatenated_convolution(modules)


def _concatenated_convolution(modules: Sequence[nn.Conv2d]) -> nn.Conv2d:
    first = modules[0]
    hyperparameters = {(m.weight.shape, m.stride, m.padding, m.dilation, m.groups, m.padding_mode) for m in modules}
    if len(hyperparameters) > 1:
        raise CannotRun(f"cannot be grouped: convolutions that differ, {sorted(map(str, hyperparameters))}")
    grouped = copy.copy(first)
    grouped._parameters = dict(first._parameters)
    grouped.weight = concatenated([module.weight for module in modules])  # type: ignore[assignment]
    grouped.bias = concatenated([module.bias for module in modules])
    grouped.out_channels = first.out_channels * len(modules)
    return grouped


def pointwise_as_products(module: nn.Module, members: int) -> None:
    """Replace every grouped 1x1 convolution inside `module`, in place, by a `PointwiseConv`."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and _is_pointwise(child, members):
                setattr(parent, name, PointwiseConv(child, members))


def _is_pointwise(conv: nn.Conv2d, members: int) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == members
