"""`backend=openvino`: networks through OpenVINO, on the CPU. An extra: `pip install 'detserver[openvino]'`."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch

from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore
from detserver.postprocess import RawOutput
from detserver.recipes import openvino_network
from detserver.recipes.recipe import Recipe
from detserver.recipes.technique import Plan, Technique


class OpenVino(Technique):
    """Networks compiled by OpenVINO, one after the other, each with all threads; converted ones are kept."""

    field = "backend"
    titles: ClassVar = {"openvino": "OpenVINO"}

    def unavailable_reason(self, recipe: Recipe, device: torch.device) -> str | None:  # noqa: ARG002
        """See `Technique.unavailable_reason`."""
        return openvino_network.unavailable_reason(device)

    def batch_sizes(self, device: torch.device) -> tuple[int, ...]:  # noqa: ARG002
        """See `Technique.batch_sizes`; a batch takes as long as its images one after the other."""
        return (1,)

    def prepare(self, recipe: Recipe, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> None:  # noqa: ARG002
        """See `Technique.prepare`."""
        openvino_network.prepare(model_set, weights)

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        models = [plan.weights.model(spec) for spec in plan.model_set.models]
        dtype = torch.bfloat16 if plan.recipe.precision == "bf16" else torch.float32
        networks = openvino_network.openvino_networks(plan.model_set, models, plan.weights, dtype)
        for network, (_, run) in zip(plan.networks, networks, strict=True):
            network.run = partial(_alone, run)


def _alone(run: Callable[[torch.Tensor], RawOutput], pixels: torch.Tensor) -> list[RawOutput]:
    return [run(pixels)]
