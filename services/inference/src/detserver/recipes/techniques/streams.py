"""`streams`: each network on a CUDA stream of its own, so that small kernels of several run at the same time."""

from typing import ClassVar

import torch

from detserver.postprocess import RawOutput
from detserver.recipes.recipe import Recipe
from detserver.recipes.technique import Inputs, Plan, Technique


class Streams(Technique):
    """Networks side by side."""

    field = "streams"
    titles: ClassVar = {True: "a stream each"}

    def unavailable_reason(self, recipe: Recipe, device: torch.device) -> str | None:
        """See `Technique.unavailable_reason`."""
        if device.type != "cuda":
            return "CUDA streams need an NVIDIA GPU"
        return None if recipe.backend == "torch" else f"{recipe.backend} has streams of its own"

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        streams = [torch.cuda.Stream(plan.device) for _ in plan.networks]  # type: ignore[no-untyped-call]

        def forward(inputs: Inputs) -> list[RawOutput]:
            main = torch.cuda.current_stream(plan.device)
            found = []
            for network, stream in zip(plan.networks, streams, strict=True):
                stream.wait_stream(main)
                with torch.cuda.stream(stream):
                    found.append(network.run(inputs[network.input]))
            for stream in streams:
                main.wait_stream(stream)
            return plan.in_order(found)

        plan.forward = forward
