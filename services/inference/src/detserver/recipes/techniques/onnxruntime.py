"""`backend=onnxruntime`: networks in sessions of ONNX Runtime, on a CPU one after the other, or by CUDA."""

from typing import ClassVar

import torch

from detserver.models.model_sets import ModelSpec
from detserver.models.weights import WeightsStore
from detserver.recipes.backends import onnxruntime_network
from detserver.recipes.backends.backend import Backend, Network
from detserver.recipes.recipe import BATCH_SIZES, Recipe


class OnnxRuntime(Backend):
    """See `detserver.recipes.backends.onnxruntime_network`."""

    titles: ClassVar = {"onnxruntime": "ONNX Runtime"}

    def not_here(self, recipe: Recipe, device: torch.device) -> str | None:
        """See `Backend.not_here`."""
        if recipe.precision != "fp32":
            return f"ONNX Runtime runs in fp32 here, not in {recipe.precision}"
        return onnxruntime_network.unavailable_reason(device)

    def batch_sizes(self, device: torch.device) -> tuple[int, ...]:
        """See `Technique.batch_sizes`; on a CPU a batch takes as long as its images one after the other."""
        return BATCH_SIZES if device.type == "cuda" else (1,)

    def is_converted(self, spec: ModelSpec, weights: WeightsStore, precision: str) -> bool:
        """See `Backend.is_converted`."""
        return onnxruntime_network.is_converted(spec, weights, precision)

    def convert(self, spec: ModelSpec, weights: WeightsStore, precision: str) -> None:
        """See `Backend.convert`."""
        onnxruntime_network.prepare(spec, weights, precision)

    def network(self, spec: ModelSpec, weights: WeightsStore, precision: str, device: torch.device) -> Network:
        """See `Backend.network`."""
        return onnxruntime_network.network(spec, weights, precision, device)
