"""Admission, batching, and the one thread that uses the device."""

import asyncio
import gc
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from detserver.errors import (
    CannotRun,
    DetserverError,
    DeviceFailed,
    InferenceFailed,
    NotReady,
    OutOfMemory,
    QueueFull,
)
from detserver.implementations import Registry
from detserver.implementations.base import BaseModelImpl, DetectionOutput
from detserver.machine.device import claim, use_ieee_float32, use_libraries, why_broken
from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore
from detserver.preprocess import PreparedImage
from detserver.recipes.cuda_graph import clear_workspaces

log = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str, str]


@dataclass(frozen=True)
class Answer:
    """Detections of one image, one output per model, and when the device worked on them (`time.perf_counter`).

    `started`, `ended` and `forward_s`, the seconds of the forward pass in between, are those of the batch of
    `batch_size` images that this one was part of.
    """

    outputs: list[DetectionOutput]
    started: float
    ended: float
    forward_s: float
    batch_size: int


@dataclass(frozen=True)
class LoadFigures:
    """What loading an implementation took, without what it shares with others; see `BaseModelImpl` for `remark`.

    `compile_s` is None where nothing is compiled.
    """

    load_s: float
    compile_s: float | None
    remark: str


@dataclass
class _Request:
    implementation: type[BaseModelImpl]
    model_set: ModelSet
    image: PreparedImage
    future: "Future[Answer]" = field(default_factory=Future)

    @property
    def key(self) -> Key:
        return self.implementation.name, self.model_set.name


@dataclass
class _Call:
    function: Callable[[], Any]
    future: "Future[Any]" = field(default_factory=Future)


class Engine:
    """Runs implementations on one device, from one thread, in the order of arrival.

    Args:
        registry: the implementations there are.
        weights: where they take their weights from.
        device: where they run.
        queue_size: requests in work at the same time, from admission to answer.
        on_device_failure: called once, from the device thread and with the reason, when the device answers nothing but
            errors any more: only a new process can use it again. What waits is then answered with `DeviceFailed`.
    """

    def __init__(
        self,
        registry: Registry,
        weights: WeightsStore,
        device: torch.device,
        queue_size: int,
        on_device_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.registry = registry
        self.device = device
        self._on_device_failure = on_device_failure
        self._device_failure: DeviceFailed | None = None
        self._weights = weights
        self._queue_size = queue_size
        self._in_work = 0
        self._work: deque[_Request | _Call] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._loaded: dict[Key, BaseModelImpl] = {}
        self._figures: dict[Key, LoadFigures] = {}
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Start the device thread."""
        use_ieee_float32()
        self._thread.start()

    def stop(self, limit_s: float | None = None) -> bool:
        """Answer what waits with `NotReady` and end the device thread after what is in work.

        Args:
            limit_s: how long to wait for that, seconds; a load cannot be interrupted, and compiling takes minutes.

        Returns:
            Whether the thread has ended.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    @property
    def device_failed(self) -> bool:
        """Whether the device answers nothing but errors; see `on_device_failure`."""
        return self._device_failure is not None

    @property
    def depth(self) -> int:
        """Requests that wait for the device now."""
        return sum(isinstance(item, _Request) for item in tuple(self._work))

    @property
    def loaded(self) -> list[Key]:
        """(implementation, model set) of what can serve at once."""
        return list(self._loaded)

    @property
    def load_figures(self) -> dict[Key, LoadFigures]:
        """Of what is loaded, by (implementation, model set)."""
        return dict(self._figures)

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Hold one of the places for requests in work; to be used from the event loop's thread only.

        Raises:
            QueueFull: all are taken.
        """
        if self._in_work >= self._queue_size:
            raise QueueFull(f"{self._queue_size} requests are in work already; try again")
        self._in_work += 1
        try:
            yield
        finally:
            self._in_work -= 1

    def check(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> None:
        """Raise `CannotRun` with the reason when `implementation` cannot run here, or not this set."""
        if reason := implementation.unavailable_reason(self.device):
            raise CannotRun(f"{implementation.name} cannot run on this device: {reason}")
        if reason := implementation.unsupported_reason(model_set):
            raise CannotRun(f"{implementation.name} cannot run {model_set.name}: {reason}")

    async def infer(self, implementation: type[BaseModelImpl], model_set: ModelSet, image: PreparedImage) -> Answer:
        """Detections of one image; what is not loaded yet is loaded first.

        Raises:
            CannotRun, OutOfMemory, InferenceFailed, DeviceFailed, NotReady: see there.
        """
        self.check(implementation, model_set)
        request = _Request(implementation, model_set, image)
        self._submit(request)
        return await asyncio.wrap_future(request.future)

    async def load(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> LoadFigures:
        """Load an implementation; `load_s` is 0 when it was loaded already."""
        self.check(implementation, model_set)
        return await self.call(lambda: self._load(implementation, model_set))

    async def time(
        self,
        implementation: type[BaseModelImpl],
        model_set: ModelSet,
        image: PreparedImage,
        batch_size: int,
        repeats: int,
        limit_s: float,
    ) -> list[float]:
        """Seconds of forward pass and post-processing of a batch of equal images, several times, one after the other.

        Nothing else runs meanwhile. What is not loaded yet is loaded first, and one batch does not count.

        Args:
            image: stands for every image of the batch.
            batch_size: images, of which the implementation makes batches that it can run.
            repeats: how many times, at most.
            limit_s: after so many seconds it ends, having measured at least once.
        """
        self.check(implementation, model_set)

        def measure() -> list[float]:
            self._load(implementation, model_set)
            built, batch = self._loaded[implementation.name, model_set.name], [image] * batch_size
            with failures((implementation.name, model_set.name)):
                return _times(built, batch, repeats, limit_s)

        return await self.call(measure)

    async def unload(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> bool:
        """Unload an implementation and give its memory back; returns whether it was loaded."""
        return await self.call(lambda: self._unload((implementation.name, model_set.name)))

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the device thread, after what waits there already."""
        item = _Call(function)
        self._submit(item)
        result: T = await asyncio.wrap_future(item.future)
        return result

    def _submit(self, item: _Request | _Call) -> None:
        with self._changed:
            if self._device_failure is not None:
                raise self._device_failure
            if self._stopping:
                raise NotReady("the server is about to end")
            self._work.append(item)
            self._changed.notify()

    def _run(self) -> None:
        claim(self.device)
        while self._device_failure is None:
            with self._changed:
                self._changed.wait_for(lambda: self._work or self._stopping)
                if self._stopping:
                    break
                batch = self._next_batch()
            if isinstance(batch, _Call):
                self._complete(batch)
            else:
                self._serve([request for request in batch if request.future.set_running_or_notify_cancel()])
        for item in self._work:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(self._device_failure or NotReady("the server is about to end"))
        if self._device_failure is None:
            for built in self._loaded.values():
                built.unload()
            self._loaded.clear()

    def _next_batch(self) -> _Call | list[_Request]:
        """The first item and, of requests, those right behind it that can run with it: arrival order is kept."""
        first = self._work.popleft()
        if isinstance(first, _Call):
            return first
        batch = [first]
        while len(batch) < first.implementation.batch_limit(self.device) and self._work:
            following = self._work[0]
            if isinstance(following, _Call) or following.key != first.key:
                break
            batch.append(following)
            self._work.popleft()
        return batch

    def _serve(self, batch: list[_Request]) -> None:
        if not batch:
            return
        first = batch[0]
        try:
            self._load(first.implementation, first.model_set)
            with failures(first.key):
                answers = self._predict(self._loaded[first.key], batch)
        except Exception as error:
            for request in batch:
                request.future.set_exception(self._answer_to(error))
            return
        for request, answer in zip(batch, answers, strict=True):
            request.future.set_result(answer)

    def _complete(self, call: _Call) -> None:
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            call.future.set_result(call.function())
        except Exception as error:
            call.future.set_exception(self._answer_to(error))

    def _answer_to(self, error: Exception) -> Exception:
        """What is answered where `error` was raised: the failure of the device, where that is what is behind it."""
        if self._device_failure is None and (reason := why_broken(self.device)):
            reason = f"{self.device} answers nothing but errors, and the server ends: {reason}"
            log.critical(reason)
            with self._changed:
                self._device_failure = DeviceFailed(reason)
            self._on_device_failure(reason)
        return self._device_failure or error

    def _predict(self, implementation: BaseModelImpl, batch: Sequence[_Request]) -> list[Answer]:
        implementation.take_stages()  # of a batch that failed, and of what was run to count kernels
        start = time.perf_counter()
        outputs = implementation.predict_batch([request.image for request in batch])
        implementation.synchronize()
        _check_outputs(implementation.model_set, len(batch), outputs)
        end = time.perf_counter()
        stages = implementation.take_stages()
        forward = stages.get("forward", end - start - stages.get("postprocess", 0.0))
        return [Answer(output, start, end, forward, len(batch)) for output in outputs]

    def _load(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> LoadFigures:
        key = implementation.name, model_set.name
        if key in self._loaded:
            return replace(self._figures[key], load_s=0.0)
        log.info("loading %s for %s", *key)
        try:
            with failures(key):
                built, figures = self._build(implementation, model_set)
        except DetserverError as error:
            # The frames of a failed load hold what it had built.
            for each in (error, error.__cause__):
                if each is not None:
                    traceback.clear_frames(each.__traceback__)
            self._give_memory_back()
            raise
        self._loaded[key], self._figures[key] = built, figures
        log.info("loaded %s for %s in %.1f s", *key, figures.load_s)
        return figures

    def _build(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> tuple[BaseModelImpl, LoadFigures]:
        use_libraries(self.device)
        built = implementation(model_set, self._weights, self.device)
        built.prepare()
        start = time.perf_counter()
        built.load()
        built.synchronize()
        return built, LoadFigures(time.perf_counter() - start, built.compile_s, built.remark)

    def _unload(self, key: Key) -> bool:
        built = self._loaded.pop(key, None)
        self._figures.pop(key, None)
        was_loaded = built is not None
        if built is not None:
            built.unload()
            del built
            log.info("unloaded %s for %s", *key)
        self._give_memory_back()
        return was_loaded

    def _give_memory_back(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            clear_workspaces()
            torch.cuda.empty_cache()


def _times(built: BaseModelImpl, batch: Sequence[PreparedImage], repeats: int, limit_s: float) -> list[float]:
    built.predict_batch(batch)
    built.synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while not times or (len(times) < repeats and time.perf_counter() - begin < limit_s):
        start = time.perf_counter()
        built.predict_batch(batch)
        built.synchronize()
        times.append(time.perf_counter() - start)
    built.take_stages()
    return times


@contextmanager
def failures(key: Key) -> Iterator[None]:
    """Turn what an implementation raises into an answer; the log gets the traceback of what is not expected."""
    try:
        yield
    except DetserverError:
        raise
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        raise OutOfMemory(f"{key[0]} on {key[1]}: {reason}; unload another implementation") from error
    except Exception as error:
        log.exception("%s on %s failed", *key)
        raise InferenceFailed(f"{key[0]} on {key[1]} failed: {type(error).__name__}: {error}") from error


def _check_outputs(model_set: ModelSet, images: int, outputs: list[list[DetectionOutput]]) -> None:
    names = [spec.name for spec in model_set.models]
    if len(outputs) != images or any([output.model_name for output in per_image] != names for per_image in outputs):
        raise InferenceFailed(f"not one output per image and model of {model_set.name}")
    for output in (output for per_image in outputs for output in per_image):
        if not (np.isfinite(output.boxes).all() and np.isfinite(output.scores).all()):
            raise InferenceFailed(f"{output.model_name} answered a NaN or an infinity")
