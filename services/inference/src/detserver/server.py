"""One server: its parts put together, and what the routes ask of it."""

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Literal

import torch
from starlette.requests import Request

from detserver import compiling, images, profiling, schemas
from detserver.engine import Answer, Engine
from detserver.errors import BadConfiguration, CannotRun, DetserverError, NotReady
from detserver.implementations import Registry
from detserver.implementations.base import BaseModelImpl
from detserver.machine import describe, pick_device
from detserver.preprocess import PreparedImage, prepare
from detserver.settings import Settings
from detserver.telemetry import Telemetry
from detserver.upload import read_image
from detserver.vram import VramMonitor
from detserver.weights import WeightsStore
from detserver.zoo import ModelSet, Zoo

log = logging.getLogger(__name__)

Status = Literal["ok", "loading", "failed"]

# Of one `POST /time`, during which nothing else is served.
_TIME_LIMIT_S = 60.0


class Server:
    """Everything behind the routes.

    Raises:
        BadConfiguration: a setting, the file of model sets or the device cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        if settings.torch_threads:
            torch.set_num_threads(settings.torch_threads)
        self.device = _usable_device(settings.device)
        self.zoo = Zoo(settings.model_sets_file, settings.weights_dir)
        if settings.default_model_set not in self.zoo.model_sets:
            raise BadConfiguration(f"DETSERVER_DEFAULT_MODEL_SET: no model set {settings.default_model_set!r}")
        self.weights = WeightsStore(
            settings.weights_dir, settings.cache_dir, settings.seed, settings.weights_download, settings.weights_url
        )
        self.registry = Registry()
        self.engine = Engine(self.registry, self.weights, self.device, settings.queue_size)
        self.vram = VramMonitor(self.device)
        compiling.keep_in(settings.cache_dir)
        profiling.prepare()
        self.machine = describe(self.device)
        self.telemetry = Telemetry(self.registry.all, self.zoo.model_sets)
        self.telemetry.watch(
            lambda: self.engine.depth, lambda: self.engine.loaded, self._weights_rows, self.vram, self._build_labels()
        )
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._status: Status = "loading"
        self._failure: str | None = None

    async def preload(self) -> None:
        """Load what is to be loaded before the server is ready; a failure is kept for `ready` and logged."""
        try:
            for entry in self.settings.preload:
                name, _, set_name = entry.partition("@")
                await self.load(name, set_name or self.settings.default_model_set)
            self._status = "ok"
            log.info("ready on %s (%s)", self.machine.device, self.machine.device_name)
        except DetserverError as error:
            self._status, self._failure = "failed", str(error)
            log.error("cannot become ready: %s", error)

    def close(self) -> None:
        """End the threads."""
        self.engine.stop()
        self._decoders.shutdown(wait=True, cancel_futures=True)

    def not_ready(self) -> schemas.NotReadyProblem | None:
        """Why the server cannot serve yet, or None when it can."""
        if self._status == "ok":
            return None
        return schemas.NotReadyProblem(
            detail=self._failure or "the preloaded implementations are loading", failed=self._status == "failed"
        )

    async def infer(self, name: str, set_name: str | None, request: Request) -> schemas.Inference:
        """Answer `POST /infer/{name}`; see `errors` for all that can go wrong."""
        started = time.perf_counter()
        set_name = set_name or self.settings.default_model_set
        try:
            implementation, model_set = self._runnable(name, set_name)
            if self._status == "loading":
                raise NotReady("the preloaded implementations are loading")
            data = await read_image(request, round(self.settings.max_upload_mb * 1e6), self.settings.body_timeout_s)
            with self.engine.admission():
                image, stages_s = await asyncio.get_running_loop().run_in_executor(
                    self._decoders, self._prepare, data, model_set
                )
                answer = await self.engine.infer(implementation, model_set, image)
        except DetserverError as error:
            self.telemetry.rejected(name, set_name, error.status, type(error).__name__)
            raise
        stages_s = {**stages_s, **_stages(answer)}
        self.telemetry.answered(name, set_name, stages_s, answer.batch_size, started)
        return _inference(name, set_name, answer, stages_s)

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

    async def time(
        self, name: str, set_name: str | None, request: Request, batch_size: int, repeats: int
    ) -> schemas.BatchTimes:
        """Answer `POST /time/{name}`."""
        implementation, model_set = self._runnable(name, set_name or self.settings.default_model_set)
        data = await read_image(request, round(self.settings.max_upload_mb * 1e6), self.settings.body_timeout_s)
        image, _ = await asyncio.get_running_loop().run_in_executor(self._decoders, self._prepare, data, model_set)
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
            driver=self.vram.driver(),
            clocks_mhz=self.vram.clocks_mhz(),
            revision=self.settings.revision,
            settings=self._reported_settings(),
            model_sets=[self._model_set_info(model_set) for model_set in self.zoo.model_sets.values()],
            implementations=self.implementations(),
            **asdict(self.machine),
        )

    def vram_status(self) -> schemas.Vram:
        """Answer `GET /vram`."""
        megabytes = {
            f"{kind}_mb": None if value is None else value / 1e6 for kind, value in vars(self.vram.read()).items()
        }
        return schemas.Vram(device=self.machine.device, **megabytes)

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

    def _prepare(self, data: bytes, model_set: ModelSet) -> tuple[PreparedImage, dict[str, float]]:
        start = time.perf_counter()
        image = images.decode(data, round(self.settings.max_megapixels * 1e6))
        decoded = time.perf_counter()
        prepared = prepare(image, model_set.image_sizes)
        return prepared, {"decode": decoded - start, "preprocess": time.perf_counter() - decoded}

    def _implementation_info(self, implementation: type[BaseModelImpl]) -> schemas.ImplementationInfo:
        figures = self.engine.load_figures
        return schemas.ImplementationInfo(
            name=implementation.name,
            description=implementation.description,
            exact=implementation.exact,
            precision=implementation.precision,
            technique=implementation.technique_on(self.device),
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
                    image_size=spec.image_size,
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
        fields = ("queue_size", "decode_threads", "torch_threads", "seed", "max_upload_mb", "max_megapixels")
        return {name: getattr(self.settings, name) for name in fields}

    def _build_labels(self) -> Mapping[str, str]:
        versions = {name: self.machine.versions[name] for name in ("detserver", "python", "torch", "effdet", "timm")}
        return versions | {"device": self.machine.device, "revision": self.settings.revision or ""}


def _usable_device(name: str) -> torch.device:
    try:
        device = pick_device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadConfiguration(f"DETSERVER_DEVICE={name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _stages(answer: Answer) -> dict[str, float]:
    return {"queue": answer.queue_s, "forward": answer.forward_s, "postprocess": answer.postprocess_s}


def _inference(name: str, set_name: str, answer: Answer, stages_s: Mapping[str, float]) -> schemas.Inference:
    # The values were checked by the engine; validating hundreds of boxes again would cost the event loop milliseconds.
    return schemas.Inference.model_construct(
        implementation=name,
        model_set=set_name,
        total_inference_time_ms=(answer.forward_s + answer.postprocess_s) * 1e3,
        timings_ms=schemas.Timings(**{stage: seconds * 1e3 for stage, seconds in stages_s.items()}),
        batch_size=answer.batch_size,
        detections=[
            schemas.Detections.model_construct(
                model_name=output.model_name,
                boxes=output.boxes.tolist(),
                scores=output.scores.tolist(),
                labels=output.labels.tolist(),
                inference_time_ms=output.inference_time_ms,
            )
            for output in answer.outputs
        ],
    )
