"""What an implementation is: subclass `BaseModelImpl` in a new file of this folder, and it is served.

    class Mine(BaseModelImpl):
        name = "mine"
        description = "my way of running the models"
        exact = True

        def load(self) -> None:
            self.models = self.build_models()

        def predict(self, image: PreparedImage) -> list[DetectionOutput]:
            ...

A package of its own adds one by an entry point in the group `detserver.implementations`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar

import torch
from effdet.efficientdet import EfficientDet

from detserver.machine.device import synchronize
from detserver.machine.stopwatch import DeviceStage, Stopwatch
from detserver.models.model_sets import ModelSet
from detserver.models.scenes import photograph
from detserver.models.weights import WeightsStore
from detserver.postprocess import DetectionOutput
from detserver.preprocess import PreparedImage, prepare_for

__all__ = ["BaseModelImpl", "DetectionOutput"]


class BaseModelImpl(ABC):
    """One way of running the models of a set. One thread runs it, and no two calls of it overlap.

    Args:
        model_set: what to run.
        weights: where `build_models` takes the weights from.
        device: where to run.

    Class attributes:
        name: in URLs, metrics and reports.
        description: one line.
        exact: whether it claims `baseline`'s answers up to float32 reassociation; the comparison holds it to that.
        precision: of the arithmetic.
        recipe: the techniques that it runs with, by field of `Recipe`; None where it is no recipe.
        technique: what its row in the ablation is called; empty where it takes no part.
        adds_to: the implementation that it adds this technique to; None is the fastest exact one.
        max_batch_size: how many waiting images `predict_batch` is given at most; see `fitting`.
        max_queue_delay_ms: how long a waiting image waits for others, where the device is free.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    exact: ClassVar[bool]
    precision: ClassVar[str] = "fp32"
    recipe: ClassVar[Mapping[str, str | bool] | None] = None
    technique: ClassVar[str] = ""
    adds_to: ClassVar[str | None] = None
    max_batch_size: ClassVar[int] = 1
    max_queue_delay_ms: ClassVar[float] = 0.0

    def __init__(self, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> None:
        self.model_set = model_set
        self.device = device
        self.weights = weights
        self.stopwatch = Stopwatch(device)
        self.slow_nms = 0
        """Batches since the load whose NMS had to look at all candidates, see `detserver.postprocess`."""
        self.compile_s: float | None = None
        """Seconds of `load` that torch.compile took; None where it is not used."""
        self.remark = ""
        """What a person should know of how it was loaded, one line; what `fastest` has chosen, for example."""
        self.memory_format = torch.contiguous_format
        """How the pixels of its inputs are best laid out, `torch.contiguous_format` or `torch.channels_last`."""
        self.alone: Callable[[], AbstractContextManager[None]] = nullcontext
        """A context in which nothing else uses the device, for what `load` times."""

    @classmethod
    def unavailable_reason(cls, device: torch.device) -> str | None:  # noqa: ARG003 (for subclasses to use)
        """Why it cannot run on `device` at all, or None where it can."""
        return None

    @classmethod
    def unsupported_reason(cls, model_set: ModelSet) -> str | None:  # noqa: ARG003 (for subclasses to use)
        """Why it cannot run `model_set`, or None where it can."""
        return None

    @classmethod
    def compiles(cls, device: torch.device) -> bool:  # noqa: ARG003 (for subclasses to use)
        """Whether its first load on a machine takes minutes there, because it runs torch.compile."""
        return False

    @classmethod
    def loads_beside(cls, device: torch.device) -> bool:
        """Whether `load` may run in another thread while the device runs what was loaded before.

        Else the device thread calls it, and everybody waits.
        """
        return device.type == "cpu"

    @classmethod
    def loads_gently(cls) -> bool:
        """Whether the thread that loads it may have a low priority, because no thread that it starts runs it later."""
        return False

    def fitting(self, waiting: int) -> int:
        """How many of so many images that wait are best run together; 1 at least."""
        return min(waiting, self.max_batch_size)

    def prepare(self) -> None:
        """Make what other implementations and later loads find made: weights, modules, converted files; before `load`.

        It counts as part of no load: else what a load takes would depend on which one comes first. The device serves
        others meanwhile.
        """
        for spec in self.model_set.models:
            self.weights.get(spec)

    @abstractmethod
    def load(self) -> None:
        """Make ready to predict: build the models, move them to the device, compile.

        All memory is to be reachable from `self` alone, so that unloading gives it back.
        """

    def unload(self) -> None:  # noqa: B027 (for subclasses to use)
        """Let go of what has to go in an order of its own, before the object itself goes."""

    @abstractmethod
    def predict(self, image: PreparedImage) -> list[DetectionOutput]:
        """Run every model of the set on one image.

        Returns:
            One output per model, in the order of the set.
        """

    def predict_batch(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
        """Run every model on several images; the engine takes as many as `fitting` says.

        Returns:
            For each image what `predict` returns for it.
        """
        return [self.predict(image) for image in images]

    def example(self) -> PreparedImage:
        """A procedural picture that networks take for a photograph, ready for every model: to warm up with."""
        return prepare_for(self.device, photograph(), self.model_set.inputs, self.memory_format)

    def build_models(self) -> list[EfficientDet]:
        """New networks with their weights, in the order of the set, on the device, in evaluation mode."""
        return [self.weights.model(spec).to(self.device) for spec in self.model_set.models]

    @contextmanager
    def stage(self, stage: DeviceStage) -> Iterator[None]:
        """Count the time of the block as `forward` or `postprocess` of the current batch."""
        with self.stopwatch.stage(stage):
            yield

    def count(self, stage: DeviceStage, seconds: float) -> None:
        """Count `seconds` as `stage` of the current batch, where a block is not what is to be timed."""
        self.stopwatch.count(stage, seconds)

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next counts all work that was queued."""
        synchronize(self.device)
