"""Class heads of different width: padded to the widest, so that they stack, and cut again."""

import copy
from collections.abc import Sequence

import torch
from effdet.efficientdet import EfficientDet, SeparableConv2d
from torch import nn


def classes_of(model: EfficientDet) -> int:
    """Classes of a network's head, background not counted."""
    return int(model.config.num_classes)


def pad_class_heads(models: Sequence[EfficientDet]) -> None:
    """Give all class heads the outputs of the widest, in place; what is added answers 0."""
    widest = max(classes_of(model) for model in models)
    for model in models:
        head = model.class_net
        head.predict = _padded(head.predict, classes_of(model), widest)


def cut_classes(levels: Sequence[torch.Tensor], num_classes: int, widest: int) -> list[torch.Tensor]:
    """Class logits per level without the padding: (B, A x classes, H, W) from (B, A x widest, H, W)."""
    if num_classes == widest:
        return list(levels)
    return [_per_class(level, 1, widest)[:, :, :num_classes].flatten(1, 2) for level in levels]


def _padded(predict: nn.Module, num_classes: int, widest: int) -> nn.Module:
    last = "conv_pw" if isinstance(predict, SeparableConv2d) else "conv"
    conv: nn.Conv2d = getattr(predict, last)
    padded, layer = copy.copy(conv), copy.copy(predict)
    padded._parameters, layer._modules = dict(conv._parameters), dict(predict._modules)
    for name in ("weight", "bias"):
        per_class = _per_class(getattr(conv, name).detach(), 0, num_classes)
        anchors, _, *rest = per_class.shape
        wide = per_class.new_zeros(anchors, widest, *rest)
        wide[:, :num_classes] = per_class
        setattr(padded, name, nn.Parameter(wide.flatten(0, 1), requires_grad=False))
    padded.out_channels = padded.weight.shape[0]
    setattr(layer, last, padded)
    return layer


def _per_class(outputs: torch.Tensor, dim: int, num_classes: int) -> torch.Tensor:
    """Split the outputs of a head, along `dim`, into anchors and classes."""
    shape = outputs.shape
    return outputs.reshape(*shape[:dim], -1, num_classes, *shape[dim + 1 :])
