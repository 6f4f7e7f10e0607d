"""Means over large planes, as eager torch, OpenVINO and inductor compute them."""

from importlib.util import find_spec

import pytest
import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn

from detserver.recipes.backends.openvino_network import import_openvino
from detserver.recipes.plane_mean import mean_of_means, with_accurate_means
from detserver.recipes.techniques import compile as compilation

# Three levels of windows, each a sum of 64 numbers at most. A running sum of all is wrong by 1e-6 and more (measured).
ACCURATE = 2**-24 * 8


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mean_of_means(x)


def plane(*sides: int) -> torch.Tensor:
    """Nearly equal numbers: a running sum of them rounds the same way many times in a row."""
    return 0.7 + 1e-3 * torch.rand(1, 16, *sides, generator=torch.Generator().manual_seed(0))


def error(found: torch.Tensor, x: torch.Tensor) -> float:
    exact = x.double().mean((2, 3), keepdim=True)
    assert found.shape == exact.shape
    return ((found - exact).abs() / exact).max().item()


@pytest.mark.parametrize("sides", [(384, 384), (20, 20), (24, 48), (19, 19), (19, 16), (1, 1)])
def test_it_is_the_mean_whatever_the_sides(sides: tuple[int, int]):
    assert error(mean_of_means(plane(*sides)), plane(*sides)) < ACCURATE


@pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")
def test_openvino_keeps_it_accurate():
    openvino = import_openvino()
    converted = openvino.convert_model(torch.export.export(Mean(), (plane(384, 384),)))
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.from_numpy(compiled(plane(384, 384).numpy())[0].copy())
    assert error(found, plane(384, 384)) < ACCURATE


@pytest.mark.slow
@pytest.mark.skipif(compilation.unavailable_reason(torch.device("cpu")) is not None, reason="there is no C++ compiler")
def test_inductor_keeps_it_accurate():
    found = torch.compile(Mean(), dynamic=False)(plane(384, 384))
    assert error(found, plane(384, 384)) < ACCURATE


@torch.inference_mode()
def test_every_squeeze_excite_of_a_network_gives_what_it_gave():
    network = nn.Sequential(SqueezeExcite(16, 0.25), nn.Sequential(SqueezeExcite(16, 0.5)))
    expected = network(plane(64, 64))
    found = with_accurate_means(network)(plane(64, 64))
    assert type(network[0]) is type(network[1][0]) is not SqueezeExcite
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
