"""One server: its parts put together, and what the routes ask of it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Literal, TypeVar

import torch
from pydantic_core import to_json
from starlette.requests import Request

from detserver.engine.engine import Engine
from detserver.engine.work import Answer
from detserver.errors import BadConfiguration, CannotRun, ClientGone, DetserverError, NotReady
from detserver.http import kernels, schemas
from detserver.http.stages import Stages
from detserver.http.telemetry import Telemetry
from detserver.http.upload import read_image
from detserver.implementations import Registry
from detserver.implementations.base import BaseModelImpl
from detserver.machine.cpus import usable_cpus
from detserver.machine.description import describe
from detserver.machine.device import usable_device
from detserver.machine.memory import ResidentMonitor, VramMonitor
from detserver.machine.nvml import Nvml, memory_in_use
from detserver.models.model_sets import ModelSet, Zoo
from detserver.models.weights import WeightsStore
from detserver.preprocess import PreparedImage, prepare
from detserver.preprocess import decoding as images
from detserver.recipes.techniques import compile as compilation
from detserver.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
Status = Literal["ok", "loading", "failed"]

# Of one `POST /time`, during which nothing else is served.
_TIME_LIMIT_S = 60.0

# For a batch in work when the server ends; nobody waits for its answer any more.
_LAST_BATCH_S = 1.0


class Server:
    """Everything behind the routes.

    Attributes:
        ending: whether it is about to end, and every connection with it.
        ended: whether its threads have ended.
        on_device_failure: called, from the device thread, when the device is broken and the process has to end.

    Raises:
        BadConfiguration: a setting, the file of model sets or the device cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
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
        self.engine = Engine(self.registry, self.weights, self.device, settings.queue_size, self._note_device_failure)
        self._nvml = Nvml(self.device)
        self._vram = VramMonitor(self.device, self._nvml, vram_in_use_before)
        self._resident = ResidentMonitor()
        compilation.configure(settings.cache_dir, cpus, settings.compile)
        self.machine = describe(self.device)
        self.telemetry = Telemetry(self.registry.all, self.zoo.model_sets)
        self.telemetry.watch(
            lambda: self.engine.depth,
            lambda: self.engine.loaded,
            lambda: self.engine.slow_nms,
            self._weights_rows,
            self._vram.read,
            self._resident.read,
            self._build_labels(),
        )
        self._decode_threads = settings.decode_threads or cpus
        self._decoders = ThreadPoolExecutor(self._decode_threads, thread_name_prefix="decode")
        self._kernels = kernels.Counter(settings)
        self._status: Status = "loading"
        self._failure: str | None = None
        self.ending = False
        self.ended = False
        self.on_device_failure: Callable[[], None] = lambda: None

    async def preload(self) -> None:
        """Load what is to be loaded before the server is ready; a failure is kept for `ready` and logged."""
        try:
            for entry in self.settings.preload:
                name, _, set_name = entry.partition("@")
                await self.load(name, set_name or self.settings.default_model_set)
            self._status = "ok"
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

    async def infer(self, name: str, set_name: str | None, request: Request, started: float) -> bytes:
        """Answer `POST /infer/{name}` with the JSON of a `schemas.Inference`; see `errors` for all that can go wrong.

        Args:
            started: when the request's headers were there, by `time.perf_counter`.
        """
        stages = Stages(started)
        set_name = set_name or self.settings.default_model_set
        try:
            implementation, model_set = self._runnable(name, set_name)
            if self._status == "loading":
                raise NotReady("the preloaded implementations are loading")
            data = await read_image(request, round(self.settings.max_upload_mb * 1e6), self.settings.body_timeout_s)
            stages.end("receive")
            with self.engine.admission():
                answer = await _unless_gone(request, self._detect(implementation, model_set, data, stages))
        except Exception as error:
            self.telemetry.rejected(name, set_name, error)
            raise
        detections = _detections(answer)
        stages.end("serialise")
        self.telemetry.answered(name, set_name, stages, answer.batch_size)
        return _inference(name, set_name, answer, detections, stages)

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
        data = await read_image(request, round(self.settings.max_upload_mb * 1e6), self.settings.body_timeout_s)
        image = await self._prepared(data, model_set, Stages(started=0.0))  # what is timed here is the device alone
        times = await self.engine.time(implementation, model_set, image, batch_size, repeats, _TIME_LIMIT_S)
        latencies_ms = [1e3 * seconds for seconds in times]
        return schemas.BatchTimes(
            implementation=name, model_set=model_set.name, batch_size=batch_size, latencies_ms=latencies_ms
        )

    async def model_set(self, name: str) -> schemas.ModelSetInfo:
        """Answer `GET /model-sets/{name}`; finds the weights if they were not needed yet."""
        model_set = self.zoo.model_set(name)
        await self.engine.call(lambda: [self.weights.get(spec) for spec in model_set.models])
        return self._model_set_info(model_set)

    def implementations(self) -> list[schemas.ImplementationInfo]:
        """Answer `GET /implementations`; what could not be imported is listed with the reason."""
        found = [self._implementation_info(implementation) for implementation in self.registry.all.values()]
        broken = [
            schemas.ImplementationInfo(
                name=name,
                description="(broken)",
                exact=False,
                precision="",
                recipe=None,
                adds_to=None,
                technique="",
                compiles=False,
                model_sets=[],
                unsupported={},
                loaded=[],
                loads=[],
                unavailable=reason,
            )
            for name, reason in self.registry.broken.items()
        ]
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
            model_sets=[self._model_set_info(model_set) for model_set in self.zoo.model_sets.values()],
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

    def _note_device_failure(self, reason: str) -> None:
        self._status, self._failure = "failed", reason
        self.on_device_failure()

    def _runnable(self, name: str, set_name: str) -> tuple[type[BaseModelImpl], ModelSet]:
        implementation, model_set = self.registry.get(name), self.zoo.model_set(set_name)
        try:
            self.engine.check(implementation, model_set)
        except CannotRun as error:
            sets = self._runnable_sets(implementation)
            raise CannotRun(f"{error}; it can run {', '.join(sets) or 'no model set here'}") from error
        return implementation, model_set

    def _runnable_sets(self, implementation: type[BaseModelImpl]) -> list[str]:
        if implementation.unavailable_reason(self.device):
            return []
        return [name for name, each in self.zoo.model_sets.items() if not implementation.unsupported_reason(each)]

    async def _detect(
        self, implementation: type[BaseModelImpl], model_set: ModelSet, data: bytes, stages: Stages
    ) -> Answer:
        answer = await self.engine.infer(implementation, model_set, await self._prepared(data, model_set, stages))
        stages.end("queue", answer.started)
        stages.end("forward", answer.started + answer.forward_s)
        stages.end("postprocess", answer.ended)
        return answer

    async def _prepared(self, data: bytes, model_set: ModelSet, stages: Stages) -> PreparedImage:
        def prepare_it() -> PreparedImage:
            stages.end("wait")
            image = images.decode(data, round(self.settings.max_megapixels * 1e6))
            stages.end("decode")
            prepared = prepare(image, model_set.inputs)
            stages.end("preprocess")
            return prepared

        return await asyncio.get_running_loop().run_in_executor(self._decoders, prepare_it)

    def _implementation_info(self, implementation: type[BaseModelImpl]) -> schemas.ImplementationInfo:
        figures = self.engine.load_figures
        return schemas.ImplementationInfo(
            name=implementation.name,
            description=implementation.description,
            exact=implementation.exact,
            precision=implementation.precision,
            recipe=None if implementation.recipe is None else dict(implementation.recipe),
            adds_to=implementation.adds_to,
            technique=implementation.technique,
            compiles=implementation.compiles(self.device),
            model_sets=self._runnable_sets(implementation),
            unsupported={
                model_set.name: reason
                for model_set in self.zoo.model_sets.values()
                if (reason := implementation.unsupported_reason(model_set))
            },
            loaded=[set_name for name, set_name in figures if name == implementation.name],
            loads=[
                schemas.Loaded(implementation=name, model_set=set_name, **asdict(each))
                for (name, set_name), each in figures.items()
                if name == implementation.name
            ],
            unavailable=implementation.unavailable_reason(self.device),
        )

    def _model_set_info(self, model_set: ModelSet) -> schemas.ModelSetInfo:
        models = []
        for spec in model_set.models:
            weights = self.weights.known(spec)
            models.append(
                schemas.ModelInfo(
                    model_name=spec.name,
                    architecture=spec.architecture,
                    num_classes=spec.num_classes,
                    image_size=spec.input.size,
                    mean=spec.input.mean,
                    std=spec.input.std,
                    interpolation=spec.input.interpolation,
                    fill_color=spec.input.fill_color,
                    configuration=dict(spec.overrides),
                    source=weights.source if weights else None,
                    fingerprint=weights.fingerprint if weights else None,
                )
            )
        return schemas.ModelSetInfo(name=model_set.name, models=models)

    def _weights_rows(self) -> list[tuple[str, str, str]]:
        return [
            (model_set.name, spec.name, weights.source)
            for model_set in self.zoo.model_sets.values()
            for spec in model_set.models
            if (weights := self.weights.known(spec))
        ]

    def _reported_settings(self) -> dict[str, str | int | float | bool | None]:
        fields = ("queue_size", "torch_threads", "compile", "seed", "max_upload_mb", "max_megapixels")
        return {name: getattr(self.settings, name) for name in fields} | {"decode_threads": self._decode_threads}

    def _build_labels(self) -> Mapping[str, str]:
        versions = {name: self.machine.versions[name] for name in ("detserver", "python", "torch", "effdet", "timm")}
        return versions | {"device": self.machine.device, "revision": self.settings.revision or ""}


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; where the client closes its connection before, the device need not do it.

    Raises:
        ClientGone: it did.
    """
    working, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone("the client closed the connection before its answer was there")
    finally:
        working.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _detections(answer: Answer) -> bytes:
    # Not through `schemas`: the engine has checked the values, and validating hundreds of boxes again would cost the
    # event loop milliseconds.
    return to_json(
        [
            {
                "model_name": output.model_name,
                "boxes": output.boxes.tolist(),
                "scores": output.scores.tolist(),
                "labels": output.labels.tolist(),
                "inference_time_ms": output.inference_time_ms,
            }
            for output in answer.outputs
        ]
    )


def _inference(name: str, set_name: str, answer: Answer, detections: bytes, stages: Stages) -> bytes:
    # The timings hold how long the detections took to serialise, so these are made before.
    timings_ms = {stage: seconds * 1e3 for stage, seconds in stages.seconds.items()}
    head = {
        "implementation": name,
        "model_set": set_name,
        "total_inference_time_ms": timings_ms["forward"] + timings_ms["postprocess"],
        "timings_ms": timings_ms,
        "batch_size": answer.batch_size,
    }
    return to_json(head)[:-1] + b',"detections":' + detections + b"}"
