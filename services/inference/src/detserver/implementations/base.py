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

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from effdet.efficientdet import EfficientDet
from PIL import Image

from detserver.machine.device import synchronize
from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore
from detserver.preprocess import PreparedImage, prepare
from detserver.recipes import compiling

Stage = Literal["forward", "postprocess"]


@dataclass(frozen=True)
class DetectionOutput:
    """What one model found in one image; at most 100 detections.

    Attributes:
        model_name: as in the model set.
        boxes: float32 of shape (N, 4): x1, y1, x2, y2 in pixels of the upright image.
        scores: float32 of shape (N,), in [0, 1], descending.
        labels: int64 of shape (N,), from 1.
        inference_time_ms: forward and post-processing of this model alone; None where models run as one.
    """

    model_name: str
    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    inference_time_ms: float | None = None


class BaseModelImpl(ABC):
    """One way of running the models of a set. All calls come from one thread, the only one that uses the device.

    Args:
        model_set: what to run.
        weights: where `build_models` takes the weights from.
        device: where to run.

    Class attributes:
        name: in URLs, metrics and reports.
        description: one line.
        exact: whether it claims `baseline`'s answers up to float32 reassociation; the comparison holds it to that.
        precision: of the arithmetic.
        technique: what it adds to the one before it, where it is a step of the ablation.
        max_batch_size: how many waiting images `predict_batch` is given at most; see `batch_limit`.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    exact: ClassVar[bool]
    precision: ClassVar[str] = "fp32"
    technique: ClassVar[str] = ""
    max_batch_size: ClassVar[int] = 1

    def __init__(self, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> None:
        self.model_set = model_set
        self.device = device
        self.weights = weights
        self._stages_s: dict[Stage, float] = {}
        self.compile_s: float | None = None
        """Seconds of `load` that torch.compile took; None where it is not used."""
        self.remark = ""
        """What a person should know of how it was loaded, one line; what `fused` has chosen, for example."""

    @classmethod
    def unavailable_reason(cls, device: torch.device) -> str | None:  # noqa: ARG003 (for subclasses to use)
        """Why it cannot run on `device` at all, or None where it can."""
        return None

    @classmethod
    def unsupported_reason(cls, model_set: ModelSet) -> str | None:  # noqa: ARG003 (for subclasses to use)
        """Why it cannot run `model_set`, or None where it can."""
        return None

    @classmethod
    def technique_on(cls, device: torch.device) -> str:  # noqa: ARG003 (for subclasses to use)
        """`technique`, where it depends on the device."""
        return cls.technique

    @classmethod
    def compiles(cls, device: torch.device) -> bool:  # noqa: ARG003 (for subclasses to use)
        """Whether its first load on a machine takes minutes there, because it runs torch.compile."""
        return False

    @classmethod
    def batch_limit(cls, device: torch.device) -> int:  # noqa: ARG003 (for subclasses to use)
        """Images that `predict_batch` is given at most on `device`."""
        return cls.max_batch_size

    def prepare(self) -> None:
        """Make what other implementations and later loads find made: weights, modules, converted files; before `load`.

        It counts as part of no load: else what a load takes would depend on which one comes first.
        """
        for spec in self.model_set.models:
            self.weights.get(spec)
        if self.compiles(self.device):
            compiling.import_compiler()

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
        """Run every model on several images; called with at most `max_batch_size` of them.

        Returns:
            For each image what `predict` returns for it.
        """
        return [self.predict(image) for image in images]

    def example(self) -> PreparedImage:
        """An image of noise, ready for every model of the set: to warm up with."""
        generator = np.random.Generator(np.random.PCG64(0))
        size = max(max(config.size) for config in self.model_set.inputs)
        pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        return prepare(Image.fromarray(pixels), self.model_set.inputs)

    def build_models(self) -> list[EfficientDet]:
        """New networks with their weights, in the order of the set, on the device, in evaluation mode."""
        return [self.weights.model(spec).to(self.device) for spec in self.model_set.models]

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Count the time of the block as `forward` or `postprocess` of the current batch."""
        start = time.perf_counter()
        yield
        self.synchronize()
        self.count(stage, time.perf_counter() - start)

    def count(self, stage: Stage, seconds: float) -> None:
        """Count `seconds` as `stage` of the current batch, where a block is not what is to be timed."""
        self._stages_s[stage] = self._stages_s.get(stage, 0.0) + seconds

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next counts all work that was queued."""
        synchronize(self.device)

    def take_stages(self) -> dict[Stage, float]:
        """Seconds per stage since the last call; empty when nothing was counted."""
        stages, self._stages_s = self._stages_s, {}
        return stages
