"""`compiled`: as `folded`, each network through torch.compile."""

import time
from collections.abc import Callable, Sequence

import torch
from effdet.efficientdet import EfficientDet

from detserver.implementations.folded import Folded
from detserver.postprocess import RawOutput
from detserver.recipes import compiling
from detserver.recipes.plane_mean import with_accurate_means


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
        if self.device.type == "cpu":
            with_accurate_means(model)
        return compiling.compiled(super().prepared(model))

    def remarks(self) -> list[str]:
        """See `NetworkImpl.remarks`."""
        return ["each network through torch.compile", *super().remarks()]

    def warm_up(self) -> None:
        """See `NetworkImpl.warm_up`; this is where torch.compile works."""
        start = time.perf_counter()
        with compiling.said_so(f"{self.name} for {self.model_set.name}: torch.compile"):
            super().warm_up()
        self.compile_s = time.perf_counter() - start
