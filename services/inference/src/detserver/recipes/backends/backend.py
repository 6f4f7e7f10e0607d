"""What a backend is: a technique by which a library other than torch runs the networks."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch

from detserver.models.model_sets import ModelSet, ModelSpec
from detserver.models.weights import WeightsStore
from detserver.postprocess import RawOutput
from detserver.recipes.recipe import Recipe
from detserver.recipes.technique import Plan, Technique

Network = Callable[[torch.Tensor], RawOutput]


class Backend(Technique):
    """What every value of `backend` is but `torch`. It converts the folded networks, once per machine."""

    field = "backend"
    fixed_shapes = True

    def unavailable_reason(self, recipe: Recipe, device: torch.device) -> str | None:
        """See `Technique.unavailable_reason`; a subclass adds its own."""
        if not recipe.fold or recipe.stack != "none":
            return f"{recipe.backend} converts networks whose batch norms are folded, one by one"
        return self.not_here(recipe, device)

    @abstractmethod
    def not_here(self, recipe: Recipe, device: torch.device) -> str | None:
        """Why the library cannot run `recipe` on `device`, or None where it can."""

    @abstractmethod
    def is_converted(self, spec: ModelSpec, weights: WeightsStore, precision: str) -> bool:
        """Whether the converted network is in the cache folder."""

    @abstractmethod
    def convert(self, spec: ModelSpec, weights: WeightsStore, precision: str) -> None:
        """Put the converted network into the cache folder, where it is not there yet."""

    @abstractmethod
    def network(self, spec: ModelSpec, weights: WeightsStore, precision: str, device: torch.device) -> Network:
        """The converted network, ready to run; its attribute `remark` says how, where that has to be said."""

    def is_prepared(self, recipe: Recipe, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> bool:  # noqa: ARG002 (on all)
        """See `Technique.is_prepared`."""
        return all(self.is_converted(spec, weights, recipe.precision) for spec in model_set.models)

    def prepare(self, recipe: Recipe, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> None:  # noqa: ARG002 (on all)
        """See `Technique.prepare`."""
        for spec in model_set.models:
            self.convert(spec, weights, recipe.precision)

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        remarks = []
        for network in plan.networks:
            run = self.network(network.specs[0], plan.weights, plan.recipe.precision, plan.device)
            network.run = partial(_alone, run)
            remarks.append(str(getattr(run, "remark", "")))
        plan.remarks += [remark for remark in dict.fromkeys(remarks) if remark]


def _alone(run: Network, pixels: torch.Tensor) -> Sequence[RawOutput]:
    return [run(pixels)]
