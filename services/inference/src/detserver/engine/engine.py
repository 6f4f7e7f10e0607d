"""Admission, batching, and the one thread that uses the device."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from detserver.engine.loaded import LoadedImplementations
from detserver.engine.work import Answer, Call, Key, LoadFigures, Request
from detserver.errors import CannotRun, DeviceFailed, NotReady, QueueFull
from detserver.implementations import Registry
from detserver.implementations.base import BaseModelImpl
from detserver.machine.device import claim, use_ieee_float32, why_broken
from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore
from detserver.preprocess import PreparedImage

log = logging.getLogger(__name__)

T = TypeVar("T")


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
        self._queue_size = queue_size
        self._in_work = 0
        self._work: deque[Request | Call] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._loaded = LoadedImplementations(weights, device)
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
        return sum(isinstance(item, Request) for item in tuple(self._work))

    @property
    def loaded(self) -> list[Key]:
        """(implementation, model set) of what can serve at once."""
        return self._loaded.keys()

    @property
    def load_figures(self) -> dict[Key, LoadFigures]:
        """Of what is loaded, by (implementation, model set)."""
        return dict(self._loaded.figures)

    @property
    def slow_nms(self) -> dict[Key, int]:
        """Batches whose NMS had to look at all candidates, by (implementation, model set) of all that ever ran."""
        return dict(self._loaded.slow_nms)

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
        request = Request(implementation, model_set, image)
        self._submit(request)
        return await asyncio.wrap_future(request.future)

    async def load(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> LoadFigures:
        """Load an implementation; `load_s` is 0 when it was loaded already."""
        self.check(implementation, model_set)
        return await self.call(lambda: self._loaded.load(implementation, model_set))

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
            built = self._loaded.get(implementation, model_set)
            return self._loaded.time(
                built, (implementation.name, model_set.name), [image] * batch_size, repeats, limit_s
            )

        return await self.call(measure)

    async def kernels(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> int:
        """Kernels that a batch of one image launches; what is not loaded yet is loaded first.

        The profiler stays attached to the process, on a GPU, and makes every later launch slower.
        """
        self.check(implementation, model_set)
        return await self.call(
            lambda: self._loaded.kernels(
                self._loaded.get(implementation, model_set), (implementation.name, model_set.name)
            )
        )

    async def unload(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> bool:
        """Unload an implementation and give its memory back; returns whether it was loaded."""
        return await self.call(lambda: self._loaded.unload((implementation.name, model_set.name)))

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the device thread, after what waits there already."""
        item = Call(function)
        self._submit(item)
        result: T = await asyncio.wrap_future(item.future)
        return result

    def _submit(self, item: Request | Call) -> None:
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
                first = self._work.popleft()
            if isinstance(first, Call):
                self._complete(first)
            else:
                self._serve(first)
        for item in self._work:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(self._device_failure or NotReady("the server is about to end"))
        if self._device_failure is None:
            self._loaded.unload_all()

    def _serve(self, first: Request) -> None:
        if first.future.cancelled():
            return
        batch = [first]
        try:
            built = self._loaded.get(first.implementation, first.model_set)
            batch += self._following(first.key, built)
            batch = [request for request in batch if request.future.set_running_or_notify_cancel()]
            if not batch:
                return
            answers = self._loaded.predict(built, first.key, [request.image for request in batch])
        except Exception as error:
            reason = self._answer_to(error)
            for request in batch:
                if request.future.running() or request.future.set_running_or_notify_cancel():
                    request.future.set_exception(reason)
            return
        for request, answer in zip(batch, answers, strict=True):
            request.future.set_result(answer)

    def _following(self, key: Key, built: BaseModelImpl) -> list[Request]:
        """Those right behind a request of `key` that are best run with it: the order of arrival is kept."""
        with self._changed:
            waiting = 0
            for item in self._work:
                if isinstance(item, Call) or item.key != key:
                    break
                waiting += 1
            return [self._work.popleft() for _ in range(built.fitting(1 + waiting) - 1)]  # type: ignore[misc]

    def _complete(self, call: Call) -> None:
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
