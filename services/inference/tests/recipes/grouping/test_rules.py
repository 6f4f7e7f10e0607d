"""What the walk refuses."""

import pytest
import torch
from torch import nn

from detserver.errors import CannotRun
from detserver.recipes.grouping import group


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_module_type_without_a_rule_is_named():
    with pytest.raises(CannotRun, match=r"no rule for modules of type .*Unknown"):
        group([nn.Sequential(nn.SiLU(), Unknown()), nn.Sequential(nn.SiLU(), Unknown())])


def test_a_batch_norm_that_was_not_folded_is_named():
    with pytest.raises(CannotRun, match="BatchNorm2d"):
        group([nn.BatchNorm2d(8)])


def test_members_that_differ_are_refused():
    with pytest.raises(CannotRun, match="ReLU and SiLU at one place"):
        group([nn.Sequential(nn.SiLU()), nn.Sequential(nn.ReLU())])
    with pytest.raises(CannotRun, match="different children"):
        group([nn.Sequential(nn.SiLU()), nn.Sequential(nn.SiLU(), nn.SiLU())])
