"""Which models of a set are of one architecture and configuration and can run as one."""

from collections.abc import Callable, Hashable, Sequence

import torch
from effdet.efficientdet import EfficientDet

from detserver.models.configuration import of_network
from detserver.models.model_sets import ModelSet
from detserver.postprocess import RawOutput
from detserver.preprocess import InputConfig
from detserver.recipes.network import Forward, Inputs

Stack = Callable[[torch.Tensor], Sequence[RawOutput]]
"""Raw outputs of every member, from pixels (B, 3, height, width)."""


def unsupported_reason(model_set: ModelSet) -> str | None:
    """Why there is nothing to stack in `model_set`, or None where there is."""
    if all(len(indices) == 1 for indices in members(model_set)):
        if len({spec.architecture for spec in model_set.models}) < len(model_set.models):
            return "no two of its models are of one architecture with equal inputs, so there is nothing to stack"
        names = ", ".join(spec.architecture for spec in model_set.models)
        return f"no two of its models are of one architecture ({names}), so there is nothing to stack"
    return None


def members(model_set: ModelSet) -> list[list[int]]:
    """Positions in the set of the models of which architecture, configuration of the network and input are equal."""
    found: dict[Hashable, list[int]] = {}
    for index, spec in enumerate(model_set.models):
        found.setdefault((spec.architecture, of_network(spec.overrides), spec.input), []).append(index)
    return list(found.values())


def stacked_forward(
    model_set: ModelSet, models: Sequence[EfficientDet], stack: Callable[[Sequence[EfficientDet]], Stack]
) -> Forward:
    """The forward pass of a set whose groups (`members`), of one model or more, are given to `stack` together."""
    parts: list[tuple[list[int], InputConfig, Stack]] = []
    for indices in members(model_set):
        run = stack([models[index] for index in indices])
        parts.append((indices, model_set.models[indices[0]].input, run))

    def forward(inputs: Inputs) -> list[RawOutput]:
        raw: dict[int, RawOutput] = {}
        for indices, config, run in parts:
            raw.update(zip(indices, run(inputs[config]), strict=True))
        return [raw[index] for index in range(len(models))]

    return forward
