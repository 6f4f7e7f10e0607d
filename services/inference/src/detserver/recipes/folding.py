"""Batch norm folded into the convolution before it: one kernel less per layer, and the same numbers but for rounding.

One entry per module type that holds such a pair; a batch norm that is left over is an error that names it.
"""

import copy
from collections.abc import Mapping

import torch
from effdet.efficientdet import ConvBnAct2d, EfficientDet, HeadNet, SeparableConv2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models import _efficientnet_blocks as blocks
from timm.models.efficientnet import EfficientNetFeatures
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detserver.errors import CannotRun
from detserver.models.configuration import norms_by_repeat

# Attribute names of (convolution, the batch norm right behind it).
_PAIRS: Mapping[type[nn.Module], tuple[tuple[str, str], ...]] = {
    EfficientNetFeatures: (("conv_stem", "bn1"),),
    blocks.ConvBnAct: (("conv", "bn1"),),
    blocks.DepthwiseSeparableConv: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    blocks.InvertedResidual: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    blocks.EdgeResidual: (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
    ConvBnAct2d: (("conv", "bn"),),
    SeparableConv2d: (("conv_pw", "bn"),),
}


class FoldedHead(nn.Module):
    """effdet's `HeadNet` with its batch norm of each level folded: a chain of modules per level.

    Depthwise weights and the prediction layer stay shared between levels.
    """

    def __init__(self, levels: list[nn.Sequential], predict: nn.Module) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.predict = predict

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Outputs per level, (B, outputs, H, W), from features per level, (B, C, H, W)."""
        return [self.predict(level(x)) for level, x in zip(self.levels, features, strict=True)]


def fold_batch_norm(model: EfficientDet) -> EfficientDet:
    """Fold every batch norm of a network in evaluation mode, in place; returns the network.

    Raises:
        CannotRun: a batch norm is in a module that this does not know.
    """
    assert not model.training, "in training a batch norm is no linear function"
    for module in list(model.modules()):
        for conv_name, norm_name in _PAIRS.get(type(module), ()):
            norm = getattr(module, norm_name)
            if norm is not None:
                setattr(module, conv_name, _folded(getattr(module, conv_name), norm))
                setattr(module, norm_name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    model.class_net, model.box_net = _folded_head(model.class_net), _folded_head(model.box_net)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            raise CannotRun(f"no rule folds the batch norm {name} ({type(module).__name__}) of {type(model).__name__}")
    return model


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    folded = copy.copy(conv)
    folded._parameters = dict(conv._parameters)
    folded.weight, folded.bias = (
        nn.Parameter(each.detach(), requires_grad=False)
        for each in fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    )
    return folded


def _folded_head(head: HeadNet) -> FoldedHead:
    levels = []
    for level in range(head.num_levels):
        chain: list[nn.Module] = []
        for conv, norms in zip(head.conv_rep, norms_by_repeat(head), strict=True):
            layer = copy.copy(conv)
            layer._modules = dict(conv._modules)
            last = "conv_pw" if isinstance(conv, SeparableConv2d) else "conv"
            setattr(layer, last, _folded(getattr(conv, last), norms[level]))
            chain += [layer, head.act]
        levels.append(nn.Sequential(*chain))
    return FoldedHead(levels, head.predict)
