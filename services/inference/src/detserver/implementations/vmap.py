"""`vmap`: the models of one architecture as one function over stacked parameters."""

import copy
import time
from collections.abc import Sequence

import torch
from effdet.efficientdet import EfficientDet
from torch.func import functional_call, stack_module_state

from detserver.models.model_sets import ModelSet
from detserver.postprocess import RawOutput
from detserver.recipes import compiling, stacking
from detserver.recipes.folding import fold_batch_norm
from detserver.recipes.grouping.heads import classes_of, cut_classes, pad_class_heads
from detserver.recipes.network import Forward, NetworkImpl
from detserver.recipes.stacking import Stack, stacked_forward


class Vmap(NetworkImpl):
    """`torch.func.stack_module_state`, `functional_call` and `vmap`; on a GPU through torch.compile."""

    name = "vmap"
    description = "models of one architecture stacked by torch.func.vmap; on a GPU through torch.compile"
    exact = True

    @classmethod
    def compiles(cls, device: torch.device) -> bool:
        """See `BaseModelImpl.compiles`; on a CPU it takes minutes and gains nothing."""
        return device.type == "cuda" and compiling.unavailable_reason(device) is None

    @classmethod
    def unsupported_reason(cls, model_set: ModelSet) -> str | None:
        """See `BaseModelImpl.unsupported_reason`."""
        return stacking.unsupported_reason(model_set)

    def batch_sizes(self) -> Sequence[int]:
        """See `NetworkImpl.batch_sizes`."""
        return (1, 4, 16) if self.compiles(self.device) else ()

    def build(self, models: list[EfficientDet]) -> Forward:
        """See `NetworkImpl.build`."""
        return stacked_forward(self.model_set, models, self._stack)

    def remarks(self) -> list[str]:
        """See `NetworkImpl.remarks`."""
        reason = (
            compiling.unavailable_reason(self.device) if self.device.type == "cuda" else "on a CPU it gains nothing"
        )
        return ["through torch.compile" if reason is None else f"not compiled: {reason}", *super().remarks()]

    def warm_up(self) -> None:
        """See `NetworkImpl.warm_up`; this is where torch.compile works."""
        start = time.perf_counter()
        with compiling.said_so(f"{self.name} for {self.model_set.name}: torch.compile"):
            super().warm_up()
        if self.compiles(self.device):
            self.compile_s = time.perf_counter() - start

    def _stack(self, models: Sequence[EfficientDet]) -> Stack:
        run = stack(models)
        return compiling.compiled(run) if self.compiles(self.device) else run


def stack(models: Sequence[EfficientDet]) -> Stack:
    """One forward pass of networks of one architecture, whose class heads may differ in width. They are changed."""
    classes = [classes_of(model) for model in models]
    widest = max(classes)
    pad_class_heads(models)
    folded = [fold_batch_norm(model) for model in models]
    parameters, buffers = stack_module_state(folded)
    skeleton = copy.deepcopy(folded[0]).to("meta")

    def one(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor], pixels: torch.Tensor) -> RawOutput:
        output: RawOutput = functional_call(skeleton, (parameters, buffers), (pixels,))
        return output

    of_all = torch.vmap(one, in_dims=(0, 0, None))

    def run(pixels: torch.Tensor) -> list[RawOutput]:
        class_levels, box_levels = of_all(parameters, buffers, pixels)
        return [
            (
                cut_classes([level[member] for level in class_levels], num_classes, widest),
                [level[member] for level in box_levels],
            )
            for member, num_classes in enumerate(classes)
        ]

    return run
