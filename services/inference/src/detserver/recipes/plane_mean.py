"""Squeeze-excite whose mean over a plane stays accurate in compilers that add up a plane number by number.

Eager torch adds in pairs of sums. Inductor on a CPU and OpenVINO keep a running sum per vector lane, of up to 147,456
numbers: the first blocks of D2 came out ten (OpenVINO) to a hundred times (inductor) less accurate than eager ones, and
the scores of some photographs out of the gate. Means of means of 8 x 8 numbers are as accurate as eager torch, and
OpenVINO takes 0.9 of the time. Rows first is not enough, and OpenVINO makes one sum of it again.
"""

import math

import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torch.nn import functional

_SIDE = 8


def mean_of_means(x: torch.Tensor) -> torch.Tensor:
    """Mean over the plane, (B, C, 1, 1), of (B, C, H, W): of windows, and of their means, while a window divides it."""
    while max(window := [math.gcd(side, _SIDE) for side in x.shape[2:]]) > 1:
        x = functional.avg_pool2d(x, window)
    return x.mean((2, 3), keepdim=True)


def with_accurate_means(model: nn.Module) -> nn.Module:
    """Let every squeeze-excite of `model` take `mean_of_means`, in place; returns the model."""
    for module in model.modules():
        if type(module) is SqueezeExcite:
            module.__class__ = _MeanOfMeans
    return model


class _MeanOfMeans(SqueezeExcite):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = x * self.gate(self.conv_expand(self.act1(self.conv_reduce(mean_of_means(x)))))
        return gated
