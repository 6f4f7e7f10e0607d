"""`compiled`: as `folded`, each network through torch.compile."""

import time
from collections.abc import Callable, Sequence

import torch
from effdet.efficientdet import EfficientDet
from timm.models._efficientnet_blocks import SqueezeExcite

from detserver import compiling
from detserver.implementations.folded import Folded
from detserver.postprocess import RawOutput


class _RowsFirst(SqueezeExcite):
    """Squeeze-excite whose mean over a plane is that of the means of its rows.

    On a CPU inductor adds up a plane number by number, up to 147,456 of them, where eager torch adds in pairs of sums;
    rows first, the rounding error is a tenth.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(3, keepdim=True).mean(2, keepdim=True)
        gated: torch.Tensor = x * self.gate(self.conv_expand(self.act1(self.conv_reduce(mean))))
        return gated


class Compiled(Folded):
    """Networks through torch.compile (inductor), one after the other."""

    name = "compiled"
    description = "as folded, with each model through torch.compile"
    technique = "compile"

    @classmethod
    def compiles(cls, device: torch.device) -> bool:  # noqa: ARG003 (on all)
        """See `BaseModelImpl.compiles`."""
        return True

    @classmethod
    def unavailable_reason(cls, device: torch.device) -> str | None:
        """See `BaseModelImpl.unavailable_reason`."""
        return compiling.unavailable_reason(device)

    def batch_sizes(self) -> Sequence[int]:
        """See `NetworkImpl.batch_sizes`; on a CPU one alone, because larger batches gain nothing there."""
        return (1, 4, 16) if self.device.type == "cuda" else (1,)

    def prepared(self, model: EfficientDet) -> Callable[[torch.Tensor], RawOutput]:
        """See `Postprocess.prepared`."""
        for module in model.modules():
            if type(module) is SqueezeExcite:
                module.__class__ = _RowsFirst
        return compiling.compiled(super().prepared(model))

    def warm_up(self) -> None:
        """See `NetworkImpl.warm_up`; this is where torch.compile works."""
        start = time.perf_counter()
        with compiling.said_so(f"{self.name} for {self.model_set.name}: torch.compile"):
            super().warm_up()
        self.compile_s = time.perf_counter() - start
