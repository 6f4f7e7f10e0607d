"""`stack=vmap`: the models of one architecture as one function over stacked parameters, by torch.func."""

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from effdet.efficientdet import EfficientDet
from torch import nn
from torch.func import functional_call, stack_module_state

from detserver.postprocess import RawOutput
from detserver.recipes.grouping.heads import classes_of, cut_classes, pad_class_heads
from detserver.recipes.recipe import Recipe
from detserver.recipes.stacks import Stacking


class Vmap(Stacking):
    """`torch.func.stack_module_state`, `functional_call` and `vmap`."""

    titles: ClassVar = {"vmap": "stacking by vmap"}

    def stacked(self, recipe: Recipe, models: Sequence[EfficientDet]) -> nn.Module:  # noqa: ARG002 (whatever it is)
        """See `Stacking.stacked`."""
        return StackedEfficientDet(models)


class StackedEfficientDet(nn.Module):
    """N networks of one architecture as one.

    Args:
        models: effdet networks in evaluation mode, whose class heads may differ in width. They are changed.
    """

    def __init__(self, models: Sequence[EfficientDet]) -> None:
        super().__init__()
        self._classes = [classes_of(model) for model in models]
        self._widest = max(self._classes)
        pad_class_heads(models)
        parameters, buffers = stack_module_state(list(models))
        # In a container each, because a module's own names must not have dots.
        self._parameter_names, self._buffer_names = list(parameters), list(buffers)
        self._stacked = nn.ParameterList(nn.Parameter(each, requires_grad=False) for each in parameters.values())
        for number, buffer in enumerate(buffers.values()):
            self.register_buffer(f"_buffer{number}", buffer)
        self._skeleton = [copy.deepcopy(models[0]).to("meta")]  # in a list, so that it is no part of this module

    def forward(self, pixels: torch.Tensor) -> list[RawOutput]:
        """Each member's raw outputs.

        Args:
            pixels: (B, 3, height, width), the same for all members.
        """
        parameters = dict(zip(self._parameter_names, self._stacked, strict=True))
        buffers = {name: getattr(self, f"_buffer{number}") for number, name in enumerate(self._buffer_names)}
        class_levels, box_levels = torch.vmap(self._one, in_dims=(0, 0, None))(parameters, buffers, pixels)
        return [
            (
                cut_classes([level[member] for level in class_levels], num_classes, self._widest),
                [level[member] for level in box_levels],
            )
            for member, num_classes in enumerate(self._classes)
        ]

    def _one(
        self, parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor], pixels: torch.Tensor
    ) -> RawOutput:
        output: RawOutput = functional_call(self._skeleton[0], (parameters, buffers), (pixels,))
        return output
