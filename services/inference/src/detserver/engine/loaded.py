"""The implementations that are loaded, and their memory."""

import gc
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from detserver.engine.work import Answer, Key, LoadFigures, check_outputs, failures
from detserver.errors import DetserverError
from detserver.implementations.base import BaseModelImpl
from detserver.machine.device import claim, clear_workspaces, use_libraries
from detserver.machine.memory import give_free_memory_back
from detserver.machine.profiling import count_kernels
from detserver.machine.timing import seconds_of
from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore
from detserver.preprocess import PreparedImage

log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """An implementation that only has to be loaded, once; `cached` are the files that the cache folder had before."""

    key: Key
    implementation: BaseModelImpl | None
    cached: set[Path]


class LoadedImplementations:
    """Loads, runs and unloads implementations.

    `prepare` and `load` may be called beside the device thread, everything else by it alone.

    Args:
        weights: where they take their weights from.
        device: where they run.
        alone: a context in which nothing else uses the device.

    Attributes:
        figures: what loading took, of what is loaded.
        slow_nms: batches whose NMS had to look at all candidates, of all that ever was loaded.
        images: that the device has worked on, of all that ever was loaded.
    """

    def __init__(
        self, weights: WeightsStore, device: torch.device, alone: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._weights = weights
        self._device = device
        self._alone = alone
        self._loaded: dict[Key, BaseModelImpl] = {}
        self.figures: dict[Key, LoadFigures] = {}
        self.slow_nms: Counter[Key] = Counter()
        self.images: Counter[Key] = Counter()

    def keys(self) -> list[Key]:
        """What can serve at once."""
        return list(self.figures)

    def get(self, key: Key) -> BaseModelImpl | None:
        """The implementation; None where it is not loaded."""
        return self._loaded.get(key)

    def prepare(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> Prepared:
        """Make what loading finds made, however long it takes: downloads, weights, converted networks."""
        key = implementation.name, model_set.name
        log.info("loading %s for %s", *key)
        cached = self._weights.cached_files()
        with failures(key):
            built = implementation(model_set, self._weights, self._device)
            built.alone = self._alone
            built.prepare()
        return Prepared(key, built, cached)

    def load(self, prepared: Prepared) -> LoadFigures:
        """Load an implementation."""
        key, built = prepared.key, prepared.implementation
        assert built is not None
        prepared.implementation = None  # else what a failed load has made would live as long as `prepared`
        claim(self._device)
        try:
            with failures(key):
                use_libraries(self._device)
                start = time.perf_counter()
                built.load()
                built.synchronize()
                load_s = time.perf_counter() - start
        except DetserverError as error:
            del built
            self.give_memory_back(error)
            raise
        first = not self._weights.cached_files() <= prepared.cached
        self._loaded[key] = built
        self.figures[key] = LoadFigures(load_s, built.compile_s, built.remark, first)
        log.info("loaded %s for %s in %.1f s", *key, load_s)
        return self.figures[key]

    def unload(self, key: Key) -> bool:
        """Unload an implementation and give its memory back; returns whether it was loaded."""
        self.figures.pop(key, None)
        built = self._loaded.pop(key, None)
        was_loaded = built is not None
        if built is not None:
            built.unload()
            del built
            log.info("unloaded %s for %s", *key)
        self.give_memory_back()
        return was_loaded

    def unload_all(self) -> None:
        """Let go of everything, before the device's thread ends."""
        for built in self._loaded.values():
            built.unload()
        self._loaded.clear()

    def predict(self, built: BaseModelImpl, key: Key, images: Sequence[PreparedImage]) -> list[Answer]:
        """Detections of each image of a batch."""
        built.stopwatch.take()  # of a batch that failed
        self.images[key] += len(images)
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

    def give_memory_back(self, error: BaseException | None = None) -> None:
        """Let the device have what nothing uses any more, after what `error` has interrupted."""
        for each in (error, error and error.__cause__):
            if each is not None:
                traceback.clear_frames(each.__traceback__)  # they hold what it had built, or computed
        gc.collect()
        give_free_memory_back()
        if self._device.type == "cuda":
            clear_workspaces()
            torch.cuda.empty_cache()
