"""`postprocess=effdet`: effdet's `DetBenchPredict` as its users run it, model by model and image by image."""

import time
from collections.abc import Sequence
from typing import ClassVar

import torch
from effdet import DetBenchPredict
from torch import nn

from detserver.machine.device import synchronize
from detserver.models.model_sets import ModelSpec
from detserver.postprocess import DetectionOutput, RawOutput, detection_output
from detserver.preprocess import PreparedImage
from detserver.recipes.recipe import Recipe
from detserver.recipes.technique import Network, Plan, Technique


class EffdetPostprocess(Technique):
    """Baseline's: top 5000, per-class NMS at IoU 0.5, 100 detections."""

    field = "postprocess"
    titles: ClassVar = {"effdet": "sequential eager"}

    def unavailable_reason(self, recipe: Recipe, device: torch.device) -> str | None:  # noqa: ARG002 (on all)
        """See `Technique.unavailable_reason`."""
        return None if recipe.stack == "none" else "effdet's post-processing takes one network at a time"

    def batch_sizes(self, device: torch.device) -> tuple[int, ...]:  # noqa: ARG002 (on all)
        """See `Technique.batch_sizes`."""
        return (1,)

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        plan.detect = _OneByOne(plan)


class _OneByOne:
    """Runs a `DetBenchPredict` per model, and times each."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._benches: list[tuple[ModelSpec, DetBenchPredict]] = []
        self._network_end = 0.0
        for network in plan.networks:
            (spec,) = network.specs
            bench = DetBenchPredict(_Alone(network)).to(plan.device).eval()
            bench.model.register_forward_hook(self._note_network_end)
            self._benches.append((spec, bench))

    def __call__(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
        """See `Detect`; a batch is one image."""
        (image,) = images
        return [[self._of_model(spec, bench, image) for spec, bench in self._benches]]

    def _of_model(self, spec: ModelSpec, bench: DetBenchPredict, image: PreparedImage) -> DetectionOutput:
        plan, network_input = self._plan, image.inputs[spec.input]
        start = time.perf_counter()
        image_info = {
            "img_scale": torch.tensor([network_input.scale], device=plan.device),
            "img_size": torch.tensor([[image.width, image.height]], dtype=torch.float32, device=plan.device),
        }
        pixels = plan.pixels([image], spec.input)
        rows = bench(pixels, image_info)[0].cpu().numpy()
        end = time.perf_counter()
        plan.stopwatch.count("forward", self._network_end - start)
        plan.stopwatch.count("postprocess", end - self._network_end)
        return detection_output(spec.name, rows, (end - start) * 1e3)

    def _note_network_end(self, *_: object) -> None:
        # A hook rather than two calls: what is measured stays `DetBenchPredict.forward`, whole.
        synchronize(self._plan.device)
        self._network_end = time.perf_counter()


class _Alone(nn.Module):
    """A network as effdet's benches take one."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.config = network.specs[0].config()
        self._network = network

    def forward(self, pixels: torch.Tensor) -> RawOutput:
        (raw,) = self._network.run(pixels)
        return raw
