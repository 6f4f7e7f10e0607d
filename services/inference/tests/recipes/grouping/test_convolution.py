"""Convolutions of all members in one, against each member's own."""

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from detserver.errors import CannotRun
from detserver.recipes.grouping import group
from detserver.recipes.grouping.convolution import PointwiseConv, group_shared_input, pointwise_as_products

CONVOLUTIONS = {
    "3x3": lambda: nn.Conv2d(8, 12, 3, padding=1, bias=False),
    "1x1": lambda: nn.Conv2d(8, 12, 1),
    "depthwise": lambda: nn.Conv2d(8, 8, 5, padding=2, groups=8),
    "strided, padded as TensorFlow does": lambda: Conv2dSame(8, 8, 3, stride=2, groups=8),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("members", [1, 3])
def test_each_member_convolves_its_own_channels(name: str, batch: int, members: int):
    torch.manual_seed(0)
    own = [CONVOLUTIONS[name]() for _ in range(members)]
    inputs = [torch.randn(batch, 8, 17, 16) for _ in own]
    expected = torch.cat([conv(x) for conv, x in zip(own, inputs, strict=True)], dim=1)
    grouped = group(own)
    assert type(grouped) is type(own[0])
    assert torch.allclose(grouped(torch.cat(inputs, dim=1)), expected, atol=1e-6)
    assert [conv.weight.shape[0] for conv in own] == [expected.shape[1] // members] * members, "members are unchanged"


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_1x1_convolutions_are_products(batch: int, bias: bool):
    torch.manual_seed(0)
    block = nn.Sequential(group([nn.Conv2d(8, 12, 1, bias=bias) for _ in range(3)]), nn.SiLU())
    x = torch.randn(batch, 24, 5, 6)
    expected = block(x)
    pointwise_as_products(block, members=3)
    assert isinstance(block[0], PointwiseConv)
    assert torch.allclose(block(x), expected, atol=1e-6)
    assert torch.allclose(block(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-6)


def test_the_first_convolution_reads_one_picture_for_all():
    torch.manual_seed(0)
    own = [nn.Conv2d(3, 8, 3, stride=2) for _ in range(3)]
    picture = torch.randn(2, 3, 9, 9)
    wide = group_shared_input(own)
    assert wide.groups == 1
    assert torch.allclose(wide(picture), torch.cat([conv(picture) for conv in own], dim=1), atol=1e-6)


def test_convolutions_that_differ_are_refused():
    with pytest.raises(CannotRun, match="convolutions that differ"):
        group([nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, stride=2)])
    with pytest.raises(CannotRun, match="a bias in some members"):
        group([nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, bias=False)])
