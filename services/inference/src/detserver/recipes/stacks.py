"""Networks that are of one architecture and configuration, as one: what stacking by vmap and by grouping share."""

from collections.abc import Hashable, Sequence
from typing import Any

from effdet.efficientdet import EfficientDet
from torch import nn

from detserver.models.configuration import of_network
from detserver.models.model_sets import ModelSet, ModelSpec
from detserver.recipes.recipe import Recipe
from detserver.recipes.technique import Network, Plan, Technique


class Stacking(Technique):
    """What every value of `stack` is but `none`. A subclass defines `stacked`."""

    field = "stack"
    in_torch = True

    def unsupported_reason(self, recipe: Recipe, model_set: ModelSet) -> str | None:  # noqa: ARG002 (on all)
        """See `Technique.unsupported_reason`."""
        if any(len(group) > 1 for group in groups(model_set.models)):
            return None
        if len({spec.architecture for spec in model_set.models}) < len(model_set.models):
            return "no two of its models are of one architecture with equal inputs, so there is nothing to stack"
        names = ", ".join(spec.architecture for spec in model_set.models)
        return f"no two of its models are of one architecture ({names}), so there is nothing to stack"

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        modules: dict[str, Any] = {network.specs[0].name: network.module for network in plan.networks}
        plan.networks = [
            _network(group, self.stacked(plan.recipe, [modules[spec.name] for spec in group]))
            for group in groups(plan.model_set.models)
        ]

    def stacked(self, recipe: Recipe, models: Sequence[EfficientDet]) -> nn.Module:
        """One module whose answer is the list of each member's raw outputs.

        Args:
            models: of one architecture, one or more, which may be changed; their class heads may differ in width.
        """
        raise NotImplementedError


def groups(models: Sequence[ModelSpec]) -> list[list[ModelSpec]]:
    """The models by architecture, configuration of the network and input."""
    found: dict[Hashable, list[ModelSpec]] = {}
    for spec in models:
        found.setdefault((spec.architecture, of_network(spec.overrides), spec.input), []).append(spec)
    return list(found.values())


def _network(specs: list[ModelSpec], module: nn.Module) -> Network:
    return Network(specs, module, module)
