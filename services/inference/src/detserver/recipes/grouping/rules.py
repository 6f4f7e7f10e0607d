"""The walk over module trees, and the rules for modules that do not depend on how many channels there are."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from effdet.efficientdet import (
    BiFpn,
    BiFpnLayer,
    ConvBnAct2d,
    EfficientDet,
    Fnode,
    Interpolate2d,
    ResampleFeatureMap,
    SeparableConv2d,
    SequentialList,
)
from timm.layers.drop import DropPath
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from timm.models import _efficientnet_blocks as blocks
from timm.models.efficientnet import EfficientNetFeatures
from torch import nn

from detserver.errors import CannotRun
from detserver.recipes.folding import FoldedHead

Rule = Callable[[Sequence[Any]], nn.Module]

RULES: dict[type[nn.Module], Rule] = {}
"""By exact type: a subclass may compute something else."""

_SAME_FOR_ALL_CHANNELS = (
    nn.Identity,
    nn.SiLU,
    nn.ReLU,
    nn.ReLU6,
    nn.Hardswish,
    nn.Sigmoid,
    nn.MaxPool2d,
    nn.AvgPool2d,
    MaxPool2dSame,
    AvgPool2dSame,
    Interpolate2d,
    DropPath,  # does nothing in evaluation mode
)
_CONTAINERS = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    SequentialList,
    EfficientDet,
    EfficientNetFeatures,
    blocks.ConvBnAct,
    blocks.DepthwiseSeparableConv,
    blocks.InvertedResidual,
    blocks.EdgeResidual,
    blocks.SqueezeExcite,
    BiFpn,
    BiFpnLayer,
    Fnode,
    ResampleFeatureMap,
    ConvBnAct2d,
    SeparableConv2d,
    FoldedHead,
)


def rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a function that makes one module of all members out of one module of each, for modules of `types`."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(types, function))
        return function

    return register


def group(modules: Sequence[Any]) -> nn.Module:
    """One module that computes what the given ones do, on activations side by side.

    Args:
        modules: of equal structure, in evaluation mode, batch norms folded.

    Raises:
        CannotRun: they differ in structure, or there is no rule for a type.
    """
    first = modules[0]
    if any(type(module) is not type(first) for module in modules):
        raise CannotRun(f"cannot be grouped: {' and '.join(sorted({type(m).__name__ for m in modules}))} at one place")
    if type(first) not in RULES:
        name = f"{type(first).__module__}.{type(first).__name__}"
        raise CannotRun(f"cannot be grouped: no rule for modules of type {name}")
    return RULES[type(first)](modules)


def group_children(modules: Sequence[nn.Module], **already: nn.Module) -> nn.Module:
    """The first module with all children grouped: for modules whose own forward does not depend on the channels.

    Args:
        already: children by name that were grouped before.
    """
    first = modules[0]
    if any(module._modules.keys() != first._modules.keys() for module in modules):
        raise CannotRun(f"cannot be grouped: {type(first).__name__} modules with different children")
    if first._parameters or first._buffers:
        raise CannotRun(f"cannot be grouped: {type(first).__name__} has parameters of its own")
    grouped = copy.copy(first)
    grouped._modules = {
        name: already[name]
        if name in already
        else group([module._modules[name] for module in modules])
        if child is not None
        else None
        for name, child in first._modules.items()
    }
    return grouped


@rule(*_CONTAINERS)
def _container(modules: Sequence[nn.Module]) -> nn.Module:
    return group_children(modules)


@rule(*_SAME_FOR_ALL_CHANNELS)
def _of_each_channel(modules: Sequence[nn.Module]) -> nn.Module:
    return modules[0]


def concatenated(parameters: Sequence[torch.Tensor | None]) -> nn.Parameter | None:
    """The members' parameters one after the other along the first dimension; None where they are all None."""
    if all(parameter is None for parameter in parameters):
        return None
    given = [parameter.detach() for parameter in parameters if parameter is not None]
    if len(given) < len(parameters):
        raise CannotRun("cannot be grouped: a convolution has a bias in some members and none in others")
    return nn.Parameter(torch.cat(given), requires_grad=False)
