"""`stack=grouped`: the models of one architecture as one network, see `detserver.recipes.grouping`."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from effdet.efficientdet import EfficientDet
from torch import nn

from detserver.recipes.grouping import GroupedEfficientDet
from detserver.recipes.recipe import Recipe
from detserver.recipes.stacks import Stacking


class Grouped(Stacking):
    """Every convolution is one of all members; 1x1 convolutions may be batched products instead."""

    titles: ClassVar = {"grouped": "stacking by grouped convolutions", "grouped-products": "stacking, 1x1 as products"}

    def unavailable_reason(self, recipe: Recipe, device: torch.device) -> str | None:  # noqa: ARG002 (on all)
        """See `Technique.unavailable_reason`."""
        return None if recipe.fold else "grouping takes networks without batch norms: it needs fold"

    def stacked(self, recipe: Recipe, models: Sequence[EfficientDet]) -> nn.Module:
        """See `Stacking.stacked`."""
        return GroupedEfficientDet(models, products=recipe.stack == "grouped-products")
