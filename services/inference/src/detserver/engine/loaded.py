"""The implementations that are loaded, and their memory. All calls come from the device thread."""

import gc
import logging
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from detserver.engine.work import Answer, Key, LoadFigures, check_outputs, failures
from detserver.errors import DetserverError
from detserver.implementations.base import BaseModelImpl
from detserver.machine.device import clear_workspaces, use_libraries
from detserver.machine.profiling import count_kernels
from detserver.machine.timing import seconds_of
from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore
from detserver.preprocess import PreparedImage

log = logging.getLogger(__name__)


class LoadedImplementations:
    """Loads, runs and unloads implementations.

    Args:
        weights: where they take their weights from.
        device: where they run.

    Attributes:
        figures: what loading took, of what is loaded.
        slow_nms: batches whose NMS had to look at all candidates, of all that ever was loaded.
    """

    def __init__(self, weights: WeightsStore, device: torch.device) -> None:
        self._weights = weights
        self._device = device
        self._loaded: dict[Key, BaseModelImpl] = {}
        self.figures: dict[Key, LoadFigures] = {}
        self.slow_nms: Counter[Key] = Counter()

    def keys(self) -> list[Key]:
        """What can serve at once."""
        return list(self._loaded)

    def get(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> BaseModelImpl:
        """The implementation, which is loaded where it is not yet."""
        self.load(implementation, model_set)
        return self._loaded[implementation.name, model_set.name]

    def load(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> LoadFigures:
        """Load an implementation; `load_s` is 0 when it was loaded already."""
        key = implementation.name, model_set.name
        if key in self._loaded:
            return replace(self.figures[key], load_s=0.0, first=False)
        log.info("loading %s for %s", *key)
        try:
            with failures(key):
                self._loaded[key], self.figures[key] = self._build(implementation, model_set)
        except DetserverError as error:
            # The frames of a failed load hold what it had built.
            for each in (error, error.__cause__):
                if each is not None:
                    traceback.clear_frames(each.__traceback__)
            self._give_memory_back()
            raise
        log.info("loaded %s for %s in %.1f s", *key, self.figures[key].load_s)
        return self.figures[key]

    def unload(self, key: Key) -> bool:
        """Unload an implementation and give its memory back; returns whether it was loaded."""
        built = self._loaded.pop(key, None)
        self.figures.pop(key, None)
        was_loaded = built is not None
        if built is not None:
            built.unload()
            del built
            log.info("unloaded %s for %s", *key)
        self._give_memory_back()
        return was_loaded

    def unload_all(self) -> None:
        """Let go of everything, before the device's thread ends."""
        for built in self._loaded.values():
            built.unload()
        self._loaded.clear()

    def predict(self, built: BaseModelImpl, key: Key, images: Sequence[PreparedImage]) -> list[Answer]:
        """Detections of each image of a batch."""
        built.stopwatch.take()  # of a batch that failed
        start = time.perf_counter()
        with failures(key):
            outputs = built.predict_batch(images)
            built.synchronize()
            check_outputs(built.model_set, len(images), outputs)
        end = time.perf_counter()
        self._count_slow_nms(built, key)
        stages = built.stopwatch.take()
        forward = stages.get("forward", end - start - stages.get("postprocess", 0.0))
        return [Answer(output, start, end, forward, len(images)) for output in outputs]

    def time(
        self, built: BaseModelImpl, key: Key, images: Sequence[PreparedImage], repeats: int, limit_s: float
    ) -> list[float]:
        """Seconds of forward pass and post-processing of a batch, see `Engine.time`."""

        def run() -> None:
            built.predict_batch(images)
            built.synchronize()

        with failures(key):
            times = seconds_of(run, repeats, limit_s)
        self._count_slow_nms(built, key)
        built.stopwatch.take()
        return times

    def kernels(self, built: BaseModelImpl, key: Key) -> int:
        """Kernels that a batch of one image launches, see `Engine.kernels`."""
        image = built.example()
        with failures(key):
            return count_kernels(lambda: built.predict_batch([image]), self._device)

    def _count_slow_nms(self, built: BaseModelImpl, key: Key) -> None:
        self.slow_nms[key] += built.slow_nms
        built.slow_nms = 0

    def _build(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> tuple[BaseModelImpl, LoadFigures]:
        before = self._weights.cached_files()
        use_libraries(self._device)
        built = implementation(model_set, self._weights, self._device)
        built.prepare()
        start = time.perf_counter()
        built.load()
        built.synchronize()
        load_s = time.perf_counter() - start
        first = not self._weights.cached_files() <= before
        return built, LoadFigures(load_s, built.compile_s, built.remark, first)

    def _give_memory_back(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            clear_workspaces()
            torch.cuda.empty_cache()
