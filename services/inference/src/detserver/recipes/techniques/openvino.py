"""`backend=openvino`: networks compiled by OpenVINO for the CPU, one after the other, each with all threads."""

from typing import ClassVar

import torch

from detserver.models.model_sets import ModelSpec
from detserver.models.weights import WeightsStore
from detserver.recipes.backends import openvino_network, quantization
from detserver.recipes.backends.backend import Backend, Network
from detserver.recipes.recipe import Recipe


class OpenVino(Backend):
    """See `detserver.recipes.backends.openvino_network`."""

    titles: ClassVar = {"openvino": "OpenVINO"}

    def not_here(self, recipe: Recipe, device: torch.device) -> str | None:
        """See `Backend.not_here`."""
        reason = openvino_network.unavailable_reason(device)
        return quantization.unavailable_reason() if reason is None and recipe.precision == "int8" else reason

    def batch_sizes(self, device: torch.device) -> tuple[int, ...]:  # noqa: ARG002 (on all)
        """See `Technique.batch_sizes`; a batch takes as long as its images one after the other."""
        return (1,)

    def is_converted(self, spec: ModelSpec, weights: WeightsStore, precision: str) -> bool:
        """See `Backend.is_converted`."""
        return openvino_network.is_converted(spec, weights, precision)

    def convert(self, spec: ModelSpec, weights: WeightsStore, precision: str) -> None:
        """See `Backend.convert`."""
        openvino_network.prepare(spec, weights, precision)

    def network(self, spec: ModelSpec, weights: WeightsStore, precision: str, device: torch.device) -> Network:
        """See `Backend.network`."""
        return openvino_network.network(spec, weights, precision, device)
