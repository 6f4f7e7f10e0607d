"""One server: its parts put together, and what the routes ask of it."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Literal, TypeVar

import torch
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from detserver.engine.admission import Admission
from detserver.engine.engine import Engine
from detserver.engine.work import Answer, Key
from detserver.errors import BadConfiguration, CannotRun, DeadlineMissed, DetserverError, NotReady, OnlyPreloaded
from detserver.http import kernels, schemas
from detserver.http.deadlines import asked_for, deadline
from detserver.http.exchange import Exchange
from detserver.http.intake import STARTED
from detserver.http.listing import (
    broken_implementation,
    build_labels,
    implementation_info,
    model_set_info,
    runnable_sets,
    weights_rows,
)
from detserver.http.oip.statistics import Statistics
from detserver.http.plain import Plain
from detserver.http.stages import Stages
from detserver.http.telemetry import Telemetry
from detserver.http.waiting import by, unless_gone
from detserver.implementations import Registry
from detserver.implementations.base import BaseModelImpl
from detserver.machine.cpus import usable_cpus
from detserver.machine.description import describe
from detserver.machine.device import usable_device
from detserver.machine.memory import ResidentMonitor, VramMonitor, give_free_memory_back
from detserver.machine.nvml import Nvml, memory_in_use
from detserver.models.model_sets import ModelSet, Zoo
from detserver.models.scenes import photograph
from detserver.models.weights import WeightsStore
from detserver.preprocess import PreparedImage, prepare_for, uploaded_bytes
from detserver.preprocess import decoding as images
from detserver.preprocess.letterbox import LARGE_PIXELS
from detserver.preprocess.slots import Slots
from detserver.recipes.techniques import compile as compilation
from detserver.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
Status = Literal["ok", "loading", "failed"]

# Of one `POST /time`, during which nothing else is served.
_TIME_LIMIT_S = 30.0

# For a batch in work when the server ends; nobody waits for its answer any more.
_LAST_BATCH_S = 1.0


class Server:
    """Everything behind the routes.

    Args:
        replica: its name, where it is one of a cluster.

    Attributes:
        ending: whether it is about to end, and every connection with it.
        ended: whether its threads have ended.
        on_device_failure: called, from the device thread, when the device is broken and the process has to end.

    Raises:
        BadConfiguration: a setting, the file of model sets or the device cannot be used.
    """

    def __init__(self, settings: Settings, replica: str | None = None) -> None:
        self.settings = settings
        self.replica = replica
        cpus = usable_cpus()
        torch.set_num_threads(settings.torch_threads or min(torch.get_num_threads(), cpus))
        vram_in_use_before = memory_in_use()
        self.device = usable_device(settings.device)
        self.zoo = Zoo(settings.model_sets_file, settings.data_dir)
        if settings.default_model_set not in self.zoo.model_sets:
            raise BadConfiguration(f"DETSERVER_DEFAULT_MODEL_SET: no model set {settings.default_model_set!r}")
        self.weights = WeightsStore(
            settings.weights_dir, settings.cache_dir, settings.seed, settings.weights_download, settings.weights_url
        )
        self.registry = Registry()
        self._only = settings.preloaded if settings.only_preloaded else None
        self._decode_threads = settings.decode_threads or cpus
        # As much as all places may hold in bodies.
        most_bytes = round(settings.queue_size * settings.max_upload_mb * 1e6)
        self.admission = Admission(settings.queue_size, self._decode_threads, most_bytes)
        self.engine = Engine(
            self.registry,
            self.weights,
            self.device,
            self.admission,
            self._known(settings.batch_sizes, "DETSERVER_MAX_BATCH_SIZE"),
            self._known(settings.queue_delays_s, "DETSERVER_MAX_QUEUE_DELAY_MS"),
            self._note_device_failure,
        )
        self._nvml = Nvml(self.device)
        self._vram = VramMonitor(self.device, self._nvml, vram_in_use_before)
        self._resident = ResidentMonitor()
        compilation.configure(settings.cache_dir, cpus, settings.compile)
        self.machine = describe(self.device)
        self.statistics = Statistics()
        self.telemetry = Telemetry(self.registry.all, self.zoo.model_sets)
        self.telemetry.watch(
            lambda: self.engine.depth,
            lambda: self.engine.loaded,
            lambda: self.engine.slow_nms,
            lambda: self.engine.images,
            lambda: weights_rows(self.zoo.model_sets.values(), self.weights),
            self._vram.read,
            self._resident.read,
            build_labels(self.machine, settings.revision),
        )
        self._decoders = ThreadPoolExecutor(self._decode_threads, thread_name_prefix="decode")
        self._slots = Slots(keep=2 * self._decode_threads)
        self._kernels = kernels.Counter(settings)
        self._status: Status = "loading"
        self._failure: str | None = None
        self.ending = False
        self.ended = False
        self.on_device_failure: Callable[[], None] = lambda: None

    async def preload(self) -> None:
        """Load what is to be loaded before the server is ready; a failure is kept for `ready` and logged."""
        try:
            for key in self.settings.preloaded:
                await self.load(*key)
            self._status = "ok"
            self._decoders.submit(self._prepare_once)
            log.info("ready on %s (%s)", self.machine.device, self.machine.device_name)
        except Exception as error:  # somebody's own implementation may fail in any way
            self._status, self._failure = "failed", str(error) or type(error).__name__
            log.error("cannot become ready: %s", self._failure, exc_info=not isinstance(error, DetserverError))

    def end(self) -> None:
        """Answer what comes on connections that are open still, and let each answer be its connection's last."""
        self.ending = True

    async def close(self) -> None:
        """End the threads; one that is in the middle of a load runs on, and `ended` stays false."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self.ended = await asyncio.to_thread(self.engine.stop, _LAST_BATCH_S)

    def not_ready(self) -> schemas.NotReadyProblem | None:
        """Why the server cannot serve yet, or any more, or None when it can."""
        if self.ending and not self.engine.device_failed:
            return schemas.NotReadyProblem(detail="the server is about to end", failed=False)
        if self._status == "ok":
            return None
        return schemas.NotReadyProblem(
            detail=self._failure or "the preloaded implementations are loading", failed=self._status == "failed"
        )

    def refusal(self, scope: Scope, started: float) -> DetserverError | None:
        """Why a request is refused by its headers alone; None where it is not, or is none for detections.

        Args:
            scope: of ASGI.
            started: when the headers were there, by `time.perf_counter`.
        """
        asked = asked_for(scope)
        if asked is None:
            return None
        name, set_name = asked.implementation, asked.model_set or self.settings.default_model_set
        try:
            if self.ending:
                raise NotReady("the server is about to end")
            self.admission.check((name, set_name), deadline(started, asked.deadline_ms, self.settings.deadline_s))
        except DetserverError as error:
            self.telemetry.rejected(name, set_name, error)
            return error
        return None

    async def infer(self, exchange: Exchange, request: Request, deadline_ms: float | None) -> Response:
        """Answer a request for detections; see `errors` for all that can go wrong.

        Args:
            deadline_ms: within which it is answered, from its headers on; None is the setting's.
        """
        started: float = request.scope[STARTED]
        stages = Stages(started)
        key = name, set_name = exchange.implementation, exchange.model_set or self.settings.default_model_set
        until = deadline(started, deadline_ms, self.settings.deadline_s)
        try:
            implementation, model_set = self._runnable(*key)
            if self.ending:
                raise NotReady("the server is about to end")
            if self._status == "loading":
                raise NotReady("the preloaded implementations are loading")
            with self.admission.body() as hold:
                async with by(until):
                    data = await self._read(exchange, request, hold, until)
                stages.end("receive")
                if exchange.timeout_ms is not None:
                    until = min(until, deadline(started, exchange.timeout_ms, self.settings.deadline_s))
                if key not in self.engine.loaded:
                    with self.admission.loading(key):
                        async with by(until):
                            await unless_gone(request, self.engine.ready(implementation, model_set))
            with self.admission.place(key, until):
                async with by(until):
                    answer = await unless_gone(request, self._detect(key, model_set, data, stages, until))
        except Exception as error:
            self.telemetry.rejected(name, set_name, error)
            if name in self.registry.all and set_name in self.zoo.model_sets:
                self.statistics.failed(key, time.perf_counter() - started)
            raise
        exchange.encode(answer)
        stages.end("serialise")
        self.telemetry.answered(name, set_name, stages, answer.batch_size)
        self.statistics.answered(key, stages, answer)
        return exchange.response(set_name, answer, stages, self.replica)

    def key(self, name: str, set_name: str | None) -> Key:
        """Both names, that of the default set where there is none.

        Raises:
            UnknownImplementation, UnknownModelSet, CannotRun: see there.
        """
        implementation, model_set = self._runnable(name, set_name or self.settings.default_model_set)
        return implementation.name, model_set.name

    async def load(self, name: str, set_name: str | None) -> schemas.Loaded:
        """Answer `POST /implementations/{name}/load`."""
        implementation, model_set = self._runnable(name, set_name or self.settings.default_model_set)
        figures = await self.engine.load(implementation, model_set)
        self.telemetry.expect(name, model_set.name)
        return schemas.Loaded(implementation=name, model_set=model_set.name, **asdict(figures))

    async def unload(self, name: str, set_name: str | None) -> schemas.Unloaded:
        """Answer `POST /implementations/{name}/unload`."""
        implementation = self.registry.get(name)
        model_set = self.zoo.model_set(set_name or self.settings.default_model_set)
        if self._only is not None:
            raise OnlyPreloaded("what this server has preloaded stays loaded: it serves nothing else")
        was_loaded = await self.engine.unload(implementation, model_set)
        return schemas.Unloaded(implementation=name, model_set=model_set.name, was_loaded=was_loaded)

    async def kernels(self, name: str, set_name: str | None, in_process: bool) -> schemas.Kernels:
        """Answer `POST /implementations/{name}/kernels`."""
        implementation, model_set = self._runnable(name, set_name or self.settings.default_model_set)
        if in_process:
            count = await self.engine.kernels(implementation, model_set)
        else:
            count = await self._kernels.count(implementation.name, model_set.name)
        return schemas.Kernels(implementation=name, model_set=model_set.name, kernels_per_request=count)

    async def time(
        self, name: str, set_name: str | None, request: Request, batch_size: int, repeats: int
    ) -> schemas.BatchTimes:
        """Answer `POST /time/{name}`."""
        implementation, model_set = self._runnable(name, set_name or self.settings.default_model_set)
        with self.admission.body() as hold:
            data = await self._read(Plain(name, set_name), request, hold)
        await self.engine.load(implementation, model_set)
        stages = Stages(started=0.0)  # what is timed here is the device alone
        image = await self._prepared(data, (implementation.name, model_set.name), model_set, stages)
        times = await self.engine.time(implementation, model_set, image, batch_size, repeats, _TIME_LIMIT_S)
        latencies_ms = [1e3 * seconds for seconds in times]
        return schemas.BatchTimes(
            implementation=name, model_set=model_set.name, batch_size=batch_size, latencies_ms=latencies_ms
        )

    async def model_set(self, name: str) -> schemas.ModelSetInfo:
        """Answer `GET /model-sets/{name}`; finds the weights if they were not needed yet."""
        model_set = self.zoo.model_set(name)
        await self.engine.beside(lambda: [self.weights.get(spec) for spec in model_set.models])
        return model_set_info(model_set, self.weights)

    def implementations(self) -> list[schemas.ImplementationInfo]:
        """Answer `GET /implementations`; what could not be imported is listed with the reason."""
        figures = self.engine.load_figures
        found = [
            implementation_info(each, self.device, self.zoo.model_sets.values(), figures, self._only)
            for each in self.registry.all.values()
        ]
        broken = [broken_implementation(*each) for each in self.registry.broken.items()]
        return found + broken

    def health(self) -> schemas.Health:
        """Answer `GET /health`."""
        return schemas.Health(
            status=self._status,
            detail=self._failure,
            driver=self._nvml.driver(),
            clocks_mhz=self._nvml.clocks_mhz(),
            revision=self.settings.revision,
            settings=self._reported_settings(),
            model_sets=[model_set_info(model_set, self.weights) for model_set in self.zoo.model_sets.values()],
            implementations=self.implementations(),
            **asdict(self.machine),
        )

    def device_state(self) -> schemas.DeviceState:
        """Answer `GET /device`."""
        return schemas.DeviceState.model_validate(self._nvml.state())

    def memory(self) -> schemas.Vram:
        """Answer `GET /vram`."""
        resident = self._resident.read()
        in_bytes = vars(self._vram.read()) | {"resident": resident.now, "resident_peak": resident.peak}
        megabytes = {f"{kind}_mb": None if value is None else value / 1e6 for kind, value in in_bytes.items()}
        return schemas.Vram(device=self.machine.device, **megabytes)

    def reset_memory_peaks(self) -> schemas.Vram:
        """Answer `POST /vram/reset`."""
        self._vram.reset_peaks()
        self._resident.reset_peak()
        return self.memory()

    def _prepare_once(self) -> None:
        """Import and make what the first image would wait for."""
        with suppress(RuntimeError):  # the device has failed, which the device thread tells
            prepare_for(self.device, photograph(), self.zoo.model_set(self.settings.default_model_set).inputs)

    def _note_device_failure(self, reason: str) -> None:
        self._status, self._failure = "failed", reason
        self.on_device_failure()

    def _runnable(self, name: str, set_name: str) -> tuple[type[BaseModelImpl], ModelSet]:
        implementation, model_set = self.registry.get(name), self.zoo.model_set(set_name)
        if self._only is not None and (name, set_name) not in self._only:
            raise OnlyPreloaded(f"this server serves {', '.join('@'.join(key) for key in self._only)} and nothing else")
        if (name, set_name) in self.engine.loaded:
            return implementation, model_set
        try:
            self.engine.check(implementation, model_set)
        except CannotRun as error:
            sets = runnable_sets(implementation, self.device, self.zoo.model_sets.values())
            raise CannotRun(f"{error}; it can run {', '.join(sets) or 'no model set here'}") from error
        return implementation, model_set

    def _known(self, by_implementation: dict[str, T], setting: str) -> dict[str, T]:
        for name in by_implementation:
            if name not in self.registry.all:
                raise BadConfiguration(
                    f"{setting}: no implementation {name!r}; there are {', '.join(self.registry.all)}"
                )
        return by_implementation

    async def _read(
        self, exchange: Exchange, request: Request, hold: Callable[[int], None], until: float = math.inf
    ) -> bytes:
        limit_s = min(self.settings.body_timeout_s, until - time.perf_counter())
        return await exchange.read(request, round(self.settings.max_upload_mb * 1e6), limit_s, hold)

    async def _detect(self, key: Key, model_set: ModelSet, data: bytes, stages: Stages, until: float) -> Answer:
        image = await self._prepared(data, key, model_set, stages, until)
        answer = await self.engine.infer(key, image, until)
        stages.end("queue", answer.started)
        stages.end("forward", answer.started + answer.forward_s)
        stages.end("postprocess", answer.ended)
        return answer

    async def _prepared(
        self, data: bytes, key: Key, model_set: ModelSet, stages: Stages, until: float = math.inf
    ) -> PreparedImage:
        tidy = True  # also after what is no picture, which may have had room for many pixels

        def prepare_it() -> PreparedImage:
            nonlocal tidy
            stages.end("wait")
            if time.perf_counter() > until:
                raise DeadlineMissed("no decoding thread was free in time for its deadline; try again")
            image = images.decode(data, round(self.settings.max_megapixels * 1e6))
            stages.end("decode")
            tidy = image.width * image.height > LARGE_PIXELS
            memory_format = self.engine.memory_format(key)
            prepared = prepare_for(self.device, image, model_set.inputs, memory_format, self._decoders, self._slots)
            stages.end("preprocess")
            self.admission.note_preparing(stages.seconds["decode"] + stages.seconds["preprocess"])
            self.telemetry.uploaded(uploaded_bytes(image, self.device))
            return prepared

        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, prepare_it)
        finally:
            if tidy and not self.ending:
                self._decoders.submit(give_free_memory_back)

    def _reported_settings(self) -> dict[str, str | int | float | bool | None]:
        fields = ("queue_size", "deadline_s", "torch_threads", "compile", "seed", "max_upload_mb", "max_megapixels")
        return {name: getattr(self.settings, name) for name in fields} | {"decode_threads": self._decode_threads}
