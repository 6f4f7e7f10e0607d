"""`precision`: arithmetic of less than float32. Boxes and scores are computed from the raw outputs in float32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch

from detserver.postprocess import RawOutput
from detserver.recipes.recipe import Recipe
from detserver.recipes.technique import Plan, Run, Technique

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Half(Technique):
    """Networks in float16 or bfloat16."""

    field = "precision"
    titles: ClassVar = {"fp16": "float16", "bf16": "bfloat16"}
    in_torch = True

    def unavailable_reason(self, recipe: Recipe, device: torch.device) -> str | None:
        """See `Technique.unavailable_reason`."""
        if recipe.precision == "fp16" and device.type == "cpu":
            return "float16 needs a GPU: CPUs calculate in it more slowly than in float32"
        return None

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        dtype = _DTYPES[plan.recipe.precision]
        for network in plan.networks:
            assert network.module is not None
            network.module.to(dtype)
            network.run = _cast(network.run, dtype)


class Tf32(Technique):
    """Convolutions and products in float32 whose factors are rounded to 10 bits, as NVIDIA's tensor cores take them."""

    field = "precision"
    titles: ClassVar = {"tf32": "TF32"}
    in_torch = True

    def unavailable_reason(self, recipe: Recipe, device: torch.device) -> str | None:  # noqa: ARG002 (whatever it is)
        """See `Technique.unavailable_reason`."""
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
            return "TF32 needs an NVIDIA GPU of compute capability 8.0 or more"
        return None

    def loads_beside(self, recipe: Recipe) -> bool:  # noqa: ARG002 (on all)
        """See `Technique.loads_beside`; torch's switch is the process's."""
        return False

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        plan.math = _tf32


class Int8(Technique):
    """Left to a backend."""

    field = "precision"
    titles: ClassVar = {"int8": "int8"}
    compiles = True  # a hundred photographs run through each network

    def unavailable_reason(self, recipe: Recipe, device: torch.device) -> str | None:  # noqa: ARG002 (whatever it is)
        """See `Technique.unavailable_reason`."""
        return None if recipe.backend == "openvino" else "int8 is calibrated for backend=openvino only"


def _cast(run: Run, dtype: torch.dtype) -> Run:
    def of_float(pixels: torch.Tensor) -> Sequence[RawOutput]:
        return run(pixels.to(dtype))

    return of_float


@contextmanager
def _tf32() -> Iterator[None]:
    # By the older of torch's two interfaces, see `detserver.machine.device.use_ieee_float32`.
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
