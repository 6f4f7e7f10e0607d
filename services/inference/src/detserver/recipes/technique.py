"""What a technique is: subclass `Technique` in a file of `detserver.recipes.techniques`, and recipes can name it.

    class Doubled(Technique):
        field = "doubled"  # of `Recipe`
        titles = {True: "doubled"}  # its values, and what the ablation calls each

        def apply(self, plan: Plan) -> None:
            for network in plan.networks:
                network.run = doubled(network.run)

docs/techniques.md goes through it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from detserver.machine.stopwatch import Stopwatch
from detserver.models.model_sets import ModelSet, ModelSpec
from detserver.models.weights import WeightsStore
from detserver.postprocess import DetectionOutput, RawOutput
from detserver.preprocess import InputConfig, PreparedImage
from detserver.recipes.recipe import BATCH_SIZES, Recipe

Inputs = Mapping[InputConfig, torch.Tensor]
"""Network inputs by their configuration: float32 (B, 3, height, width), on the device."""

Run = Callable[[torch.Tensor], Sequence[RawOutput]]
"""Raw outputs of each member of a network, from pixels (B, 3, height, width)."""

Detect = Callable[[Sequence[PreparedImage]], list[list[DetectionOutput]]]
"""For each image the detections of every model of the set, in its order."""


@dataclass
class Network:
    """What runs in one call: a network of the set, or several that were stacked.

    Attributes:
        specs: the members, one unless they are stacked.
        module: torch's module of it, which techniques may change or replace; None where a backend runs it.
        run: what calls it.
    """

    specs: list[ModelSpec]
    module: nn.Module | None
    run: Run

    @property
    def input(self) -> InputConfig:
        """What it takes."""
        return self.specs[0].input


@dataclass
class Plan:
    """How a set of networks is going to run. Techniques change it, one after the other.

    Attributes:
        recipe: what it is made by.
        model_set: whose networks they are.
        weights: where the weights are, and the cache folder.
        device: where it runs.
        stopwatch: counts the stages `forward` and `postprocess`.
        note_slow_nms: to be called once for each batch whose NMS had to look at all candidates.
        networks: what runs, in any order.
        forward: raw outputs of every model, in the order of the set, from the inputs of a batch.
        detect: detections of a batch of one of the sizes that the recipe has.
        memory_format: of the inputs.
        math: a context that every call runs in; switches the device's arithmetic.
        release: called in this order before the plan goes, for what has to go in an order of its own.
        remarks: what a person should know of what really runs.
    """

    recipe: Recipe
    model_set: ModelSet
    weights: WeightsStore
    device: torch.device
    stopwatch: Stopwatch
    note_slow_nms: Callable[[], None]
    networks: list[Network] = field(default_factory=list)
    memory_format: torch.memory_format = torch.contiguous_format
    math: Callable[[], AbstractContextManager[None]] = nullcontext
    release: list[Callable[[], None]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forward: Callable[[Inputs], list[RawOutput]] = self._one_after_the_other
        self.detect: Detect

    def in_order(self, found: Sequence[Sequence[RawOutput]]) -> list[RawOutput]:
        """Raw outputs in the order of the set, from those of each network."""
        by_spec = {
            spec.name: raw
            for network, outputs in zip(self.networks, found, strict=True)
            for spec, raw in zip(network.specs, outputs, strict=True)
        }
        return [by_spec[spec.name] for spec in self.model_set.models]

    def inputs(self, images: Sequence[PreparedImage]) -> Inputs:
        """The pixels of each distinct input, on the device."""
        return {config: self.pixels(images, config) for config in self.model_set.inputs}

    def pixels(self, images: Sequence[PreparedImage], config: InputConfig) -> torch.Tensor:
        """The pixels of one input (B, 3, height, width), on the device; a single image's are not copied there."""
        each = [image.inputs[config].pixels for image in images]
        # Not by `stack` or `[None]`: by the stride that these give the first dimension nobody sees the memory format.
        batches = [pixels.as_strided((1, *pixels.shape), (pixels.numel(), *pixels.stride())) for pixels in each]
        batch = batches[0] if len(batches) == 1 else torch.cat(batches)
        return batch.to(self.device).contiguous(memory_format=self.memory_format)

    def geometry(self, images: Sequence[PreparedImage]) -> tuple[torch.Tensor, torch.Tensor]:
        """On the host: `scales` and `sizes` of `PostProcessor.__call__`."""
        scales = [[image.inputs[spec.input].scale for image in images] for spec in self.model_set.models]
        return torch.tensor(scales), torch.tensor([[image.width, image.height] for image in images], dtype=torch.float)

    def _one_after_the_other(self, inputs: Inputs) -> list[RawOutput]:
        return self.in_order([network.run(inputs[network.input]) for network in self.networks])


class Technique:
    """What some values of a recipe's field do. Each method does nothing unless a subclass defines it.

    Class attributes:
        field: of `Recipe`.
        titles: the values of that field that it is about, and what the ablation calls each.
        in_torch: whether it changes torch's modules; a backend that converts networks does the like by itself.
        fixed_shapes: whether something is made for each batch size, so that each has to be warmed up.
        compiles: whether a first load on a machine takes minutes: compilation, quantization.
    """

    field: ClassVar[str]
    titles: ClassVar[Mapping[str | bool, str]]
    in_torch: ClassVar[bool] = False
    fixed_shapes: ClassVar[bool] = False
    compiles: ClassVar[bool] = False

    def unavailable_reason(self, recipe: Recipe, device: torch.device) -> str | None:
        """Why `recipe` cannot run on `device`, as far as this technique is concerned; None where it can."""

    def unsupported_reason(self, recipe: Recipe, model_set: ModelSet) -> str | None:
        """Why `recipe` cannot run `model_set`, as far as this technique is concerned; None where it can."""

    def loads_beside(self, recipe: Recipe) -> bool:  # noqa: ARG002 (for subclasses to use)
        """Whether `recipe` may be built and warmed up while another thread runs other recipes on the device.

        What switches something for the whole process may not, nor what captures graphs.
        """
        return True

    def batch_sizes(self, device: torch.device) -> tuple[int, ...]:  # noqa: ARG002 (for subclasses to use)
        """The sizes of batches that it can run, ascending, from 1; some of `BATCH_SIZES`."""
        return BATCH_SIZES

    def is_prepared(self, recipe: Recipe, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> bool:  # noqa: ARG002 (for subclasses to use)
        """Whether the cache folder has all that `prepare` would put there."""
        return True

    def prepare(self, recipe: Recipe, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> None:
        """Make what later loads find in the cache folder, and import what takes seconds."""

    def apply(self, plan: Plan) -> None:
        """Change the plan."""
