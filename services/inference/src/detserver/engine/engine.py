"""What the server asks of the device: admission, loading, and the one thread that runs batches."""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch

from detserver.engine.admission import Admission
from detserver.engine.loaded import LoadedImplementations
from detserver.engine.loading import Beside, Turns
from detserver.engine.queue import ALONE, Batching, WorkQueue
from detserver.engine.work import Answer, Call, Key, LoadFigures, Request, fail
from detserver.engine.worthwhile import WorthwhileSizes
from detserver.errors import (
    CannotRun,
    DeadlineMissed,
    DetserverError,
    DeviceFailed,
    NotLoaded,
    NotReady,
    OutOfMemory,
)
from detserver.implementations import Registry
from detserver.implementations.base import BaseModelImpl
from detserver.machine.device import claim, use_ieee_float32, why_broken
from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore
from detserver.preprocess import PreparedImage

log = logging.getLogger(__name__)

T = TypeVar("T")


class Engine:
    """Runs implementations on one device, batch by batch, in one thread. Loads happen beside it.

    Coroutines are to be awaited in one event loop.

    Args:
        registry: the implementations there are.
        weights: where they take their weights from.
        device: where they run.
        admission: which requests are taken in; it learns here how long they take.
        batch_sizes: by implementation, the largest batch where it is to be smaller than the implementation's own.
        queue_delays_s: by implementation, how long a batch waits for more images where it is not the implementation's.
        on_device_failure: called once, from the device thread and with the reason, when the device answers nothing but
            errors any more: only a new process can use it again. What waits is then answered with `DeviceFailed`.
    """

    def __init__(
        self,
        registry: Registry,
        weights: WeightsStore,
        device: torch.device,
        admission: Admission,
        batch_sizes: Mapping[str, int] | None = None,
        queue_delays_s: Mapping[str, float] | None = None,
        on_device_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.registry = registry
        self.device = device
        self.admission = admission
        self._batch_sizes = batch_sizes or {}
        self._queue_delays_s = queue_delays_s or {}
        self._on_device_failure = on_device_failure
        self._device_failure: DeviceFailed | None = None
        self._device_check = threading.Lock()
        self._turns = Turns()
        self._worthwhile = WorthwhileSizes()
        self._queue = WorkQueue(self._batching, self._alive)
        self._loaded = LoadedImplementations(weights, device, self._turns.turn)
        self._beside = Beside()
        self._loads: dict[Key, asyncio.Task[LoadFigures]] = {}
        self._unloaded: set[Key] = set()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Start the device thread."""
        use_ieee_float32()
        self._thread.start()

    def stop(self, limit_s: float | None = None) -> bool:
        """Answer what waits with `NotReady` and end the device thread after what is in work.

        Args:
            limit_s: how long to wait for that, seconds; a batch cannot be interrupted.

        Returns:
            Whether no thread is in the middle of something any more.
        """
        self._beside.close()
        for item in self._queue.close():
            fail(item, NotReady("the server is about to end"))
        self._thread.join(limit_s)
        return not self._thread.is_alive() and not self._beside.busy

    @property
    def device_failed(self) -> bool:
        """Whether the device answers nothing but errors; see `on_device_failure`."""
        return self._device_failure is not None

    @property
    def depth(self) -> int:
        """Requests that wait for the device now."""
        return self._queue.depth

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

    @property
    def images(self) -> dict[Key, int]:
        """Images that the device has worked on, by (implementation, model set)."""
        return dict(self._loaded.images)

    def check(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> None:
        """Raise `CannotRun` with the reason when `implementation` cannot run here, or not this set."""
        if reason := implementation.unavailable_reason(self.device):
            raise CannotRun(f"{implementation.name} cannot run on this device: {reason}")
        if reason := implementation.unsupported_reason(model_set):
            raise CannotRun(f"{implementation.name} cannot run {model_set.name}: {reason}")

    def memory_format(self, key: Key) -> torch.memory_format:
        """How what is loaded for `key` wants its inputs to lie in memory."""
        built = self._loaded.get(key)
        return torch.contiguous_format if built is None else built.memory_format

    async def infer(self, key: Key, image: PreparedImage, deadline: float) -> Answer:
        """Detections of one image by what is loaded for `key`.

        Args:
            deadline: by `time.perf_counter`; what the device cannot finish by then it does not begin.

        Raises:
            NotLoaded, DeadlineMissed, OutOfMemory, InferenceFailed, DeviceFailed, NotReady: see there.
        """
        request = Request(key, image, deadline)
        self._put(request)
        return await asyncio.wrap_future(request.future)

    async def ready(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> None:
        """Wait until an implementation is loaded, which is begun where nobody has done so.

        Raises:
            NotLoaded: it was unloaded, and nobody has loaded it again.
            DetserverError: what the load raises.
        """
        key = implementation.name, model_set.name
        if key in self._unloaded:
            raise NotLoaded(f"{key[0]} was unloaded for {key[1]}: POST /implementations/{key[0]}/load loads it again")
        if self._loaded.get(key) is None:
            await self.load(implementation, model_set)

    async def load(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> LoadFigures:
        """Load an implementation; `load_s` is 0 when it was loaded already. Others are served meanwhile."""
        self.check(implementation, model_set)
        key = implementation.name, model_set.name
        self._unloaded.discard(key)
        if figures := self._loaded.figures.get(key):
            return LoadFigures(0.0, figures.compile_s, figures.remark, first=False)
        if key not in self._loads:
            self._loads[key] = task = asyncio.create_task(self._load(implementation, model_set))
            task.add_done_callback(partial(self._note_load, key))
        # Whoever stops waiting stops nobody else, and the load goes on.
        return await asyncio.shield(self._loads[key])

    async def unload(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> bool:
        """Unload an implementation and give its memory back; returns whether it was loaded.

        A load that is under way is waited for. Requests are refused from then on, until somebody loads it again.
        """
        key = implementation.name, model_set.name
        if loading := self._loads.get(key):
            await asyncio.wait([loading])
        self._unloaded.add(key)
        return await self.call(lambda: self._loaded.unload(key))

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
        await self.load(implementation, model_set)
        key = implementation.name, model_set.name
        images = [image] * batch_size
        return await self.call(lambda: self._loaded.time(self._get(key), key, images, repeats, limit_s))

    async def kernels(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> int:
        """Kernels that a batch of one image launches; what is not loaded yet is loaded first.

        The profiler stays attached to the process, on a GPU, and makes every later launch slower.
        """
        await self.load(implementation, model_set)
        key = implementation.name, model_set.name
        return await self.call(lambda: self._loaded.kernels(self._get(key), key))

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the device thread, after what waits there already."""
        item = Call(function)
        self._put(item)
        result: T = await asyncio.wrap_future(item.future)
        return result

    async def beside(self, function: Callable[[], T], gently: bool = False) -> T:
        """Run `function`, which takes long, while others are served; `gently`: who go first."""
        return await asyncio.wrap_future(self._beside.run(partial(self._told, function), gently))

    async def _load(self, implementation: type[BaseModelImpl], model_set: ModelSet) -> LoadFigures:
        gently = bool(self.loaded) and implementation.loads_gently()
        prepared = await self.beside(lambda: self._loaded.prepare(implementation, model_set), gently)
        if not implementation.loads_beside(self.device):
            return await self.call(lambda: self._loaded.load(prepared))
        return await self.beside(lambda: self._loaded.load(prepared), gently)

    def _note_load(self, key: Key, task: "asyncio.Task[LoadFigures]") -> None:
        del self._loads[key]
        if not task.cancelled():
            task.exception()  # asyncio would complain where nobody has waited for it

    def _get(self, key: Key) -> BaseModelImpl:
        built = self._loaded.get(key)
        if built is None:
            raise NotLoaded(f"{key[0]} was unloaded for {key[1]} meanwhile")
        return built

    def _put(self, item: Request | Call) -> None:
        if not self._queue.put(item):
            raise self._device_failure or NotReady("the server is about to end")

    def batch_size(self, implementation: type[BaseModelImpl]) -> int:
        """How many images that wait together run together at most."""
        return self._batch_sizes.get(implementation.name, implementation.max_batch_size)

    def _batching(self, key: Key) -> Batching:
        built = self._loaded.get(key)
        if built is None:
            return ALONE
        most = built.fitting(self._batch_sizes.get(key[0], built.max_batch_size))
        sizes = sorted({built.fitting(min(1 << power, most)) for power in range(most.bit_length() + 1)})
        largest = self._worthwhile.largest(key, sizes)
        return Batching(built.fitting, largest, self._queue_delays_s.get(key[0], 1e-3 * built.max_queue_delay_ms))

    def _alive(self, request: Request, now: float) -> bool:
        if request.future.cancelled():
            return False
        if now + self.admission.device_s(request.key) <= request.deadline:
            return True
        fail(request, DeadlineMissed("the device was not free in time for its deadline; try again"))
        return False

    def _run(self) -> None:
        claim(self.device)
        while (work := self._queue.take()) is not None:
            with self._turns.turn():
                if isinstance(work, Call):
                    self._complete(work)
                else:
                    self._serve(work)
        if self._device_failure is None:
            self._loaded.unload_all()

    def _serve(self, batch: list[Request]) -> None:
        batch = [request for request in batch if request.future.set_running_or_notify_cancel()]
        if not batch:
            return
        key = batch[0].key
        try:
            built = self._get(key)
        except NotLoaded as error:
            for request in batch:
                fail(request, error)
            return
        self._predict(built, key, batch, len(batch))

    def _predict(self, built: BaseModelImpl, key: Key, requests: list[Request], most: int) -> None:
        """Answer requests in batches of `most` at most; a batch that fails is tried again in halves.

        A lack of memory often ends there, and where an image is to blame, it is answered with the reason alone.
        """
        while requests:
            size = built.fitting(min(len(requests), most))
            batch, requests = requests[:size], requests[size:]
            if self._device_failure is not None:
                for request in batch:
                    fail(request, self._device_failure)
                continue
            try:
                answers = self._loaded.predict(built, key, [request.image for request in batch])
            except DetserverError as error:
                answer = self._answer_to(error)
                if isinstance(error, OutOfMemory):
                    self._loaded.give_memory_back(error)
                if size > 1 and answer is error:
                    self._predict(built, key, batch, size // 2)
                else:
                    for request in batch:
                        fail(request, answer)
                continue
            for request, each in zip(batch, answers, strict=True):
                request.future.set_result(each)
            image_s = (answers[0].ended - answers[0].started) / size
            self.admission.note_device(key, image_s)
            self._worthwhile.note(key, size, image_s)

    def _complete(self, call: Call) -> None:
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            result = self._told(call.function)
        except Exception as error:
            call.future.set_exception(error)
        else:
            call.future.set_result(result)

    def _told(self, function: Callable[[], T]) -> T:
        """What `function` returns; where it raises because the device has failed, that is told."""
        try:
            return function()
        except Exception as error:
            answer = self._answer_to(error)
            if answer is error:
                raise
            raise answer from error

    def _answer_to(self, error: Exception) -> Exception:
        """What is answered where `error` was raised: the failure of the device, where that is what is behind it."""
        with self._device_check:
            if self._device_failure is None and (reason := why_broken(self.device)):
                reason = f"{self.device} answers nothing but errors, and the server ends: {reason}"
                log.critical(reason)
                self._device_failure = DeviceFailed(reason)
                for item in self._queue.close():
                    fail(item, self._device_failure)
                self._on_device_failure(reason)
        return self._device_failure or error
