"""Routes; what they do stands in `server`."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic.json_schema import SkipJsonSchema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Scope

from detserver import __version__
from detserver.errors import BodyTimeout, DetserverError, NotReady
from detserver.http import oip_routes as oip
from detserver.http import schemas, upload
from detserver.http.deadlines import DeadlineMs
from detserver.http.intake import Intake
from detserver.http.plain import Plain
from detserver.http.server import Server
from detserver.preprocess import decoding as images
from detserver.settings import Settings

_DESCRIPTION = """\
Several EfficientDet detectors run on every image; each *implementation* is one way of running them.

`curl -F file=@photo.jpg http://localhost:8000/infer/baseline`
"""

_IMAGE_TYPES = [f"image/{name.lower()}" for name in images.FORMATS]
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [upload.FIELD],
                    "properties": {upload.FIELD: {"type": "string", "format": "binary"}},
                },
                "encoding": {upload.FIELD: {"contentType": ", ".join(_IMAGE_TYPES)}},
            },
            **{
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in (*_IMAGE_TYPES, upload.UNNAMED_TYPE)
            },
        },
    }
}

# Without JSON's null, which no query can say.
ModelSetName = Annotated[
    str | SkipJsonSchema[None], Query(description="a model set; the server's default where it is absent")
]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the description of a route says of answers with these statuses."""
    return {status: {"model": schemas.Problem} for status in statuses}


def _problem(error: DetserverError, scope: Scope) -> JSONResponse:
    headers = {}
    if error.retry_after_s:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, BodyTimeout):
        headers["Connection"] = "close"  # RFC 9110, 15.5.9; what is left of the body would keep it open
    return _told(str(error), error.status, scope, headers)


def _told(reason: str, status: int, scope: Scope, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """What is wrong, in the form of the protocol that the request is of."""
    field = "error" if f"{scope['path']}/".startswith(f"{oip.PREFIX}/") else "detail"
    return JSONResponse({field: reason}, status, headers)


def create_app(settings: Settings, replica: str | None = None) -> FastAPI:
    """The application; as a replica of a cluster, which has a name, it has started once it is loaded.

    Raises:
        BadConfiguration: the settings cannot be used.
    """
    server = Server(settings, replica)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.engine.start()
        preload = asyncio.create_task(server.preload())
        if replica:
            await preload
        yield
        await server.close()
        preload.cancel()

    app = FastAPI(title="detserver", version=__version__, description=_DESCRIPTION, lifespan=lifespan)
    app.state.server = server

    def refused(scope: Scope, started: float) -> ASGIApp | None:
        error = server.refusal(scope, started)
        return None if error is None else _problem(error, scope)

    app.add_middleware(
        Intake,
        refused=refused,
        ending=lambda: server.ending,
        refusal=lambda scope: _problem(
            NotReady("the server ends, and did not wait for this request any longer"), scope
        ),
    )

    @app.exception_handler(DetserverError)
    async def problem(request: Request, error: DetserverError) -> JSONResponse:
        return _problem(error, request.scope)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _told(f"{first['loc'][-1]}: {first['msg']}", 422, request.scope)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        detail = f"{error.detail}: {request.method} {request.scope['path'][:200]!r}; GET /docs shows what there is"
        return _told(detail, error.status_code, request.scope, error.headers)

    # Starlette raises the error again after the answer, and uvicorn logs it with its traceback.
    @app.exception_handler(Exception)
    async def mistake(request: Request, error: Exception) -> JSONResponse:
        return _told(f"internal error ({type(error).__name__}): the server's log has more", 500, request.scope)

    @app.get("/health", summary="Liveness, status, and what this server is")
    async def health() -> schemas.Health:
        return server.health()

    @app.get(
        "/ready",
        summary="200 when the preloaded implementations can serve",
        response_model=schemas.Ready,
        responses={503: {"model": schemas.NotReadyProblem}},
    )
    async def ready() -> Response:
        reason = server.not_ready()
        if reason is None:
            return JSONResponse(schemas.Ready().model_dump())
        return JSONResponse(reason.model_dump(), 503, {"Retry-After": "2"})

    @app.get(
        "/vram",
        summary="Memory of the server's process, on the GPU and in RAM, now and at its peak",
    )
    async def vram() -> schemas.Vram:
        return server.memory()

    @app.get("/device", summary="Clocks, power, energy and throttle reasons of the GPU, by NVML")
    async def device() -> schemas.DeviceState:
        return server.device_state()

    @app.post("/vram/reset", summary="Start new peaks at what is taken now")
    async def reset_vram() -> schemas.Vram:
        return server.reset_memory_peaks()

    @app.get("/implementations", summary="The ways of running the models")
    async def implementations() -> list[schemas.ImplementationInfo]:
        return server.implementations()

    @app.post(
        "/implementations/{implementation}/load",
        summary="Load an implementation; returns when it can serve",
        responses=problems(404, 409, 422, 500, 503),
    )
    async def load(implementation: str, model_set: ModelSetName = None) -> schemas.Loaded:
        return await server.load(implementation, model_set)

    @app.post(
        "/implementations/{implementation}/unload",
        summary="Unload an implementation and give its memory back",
        responses=problems(404, 422, 503),
    )
    async def unload(implementation: str, model_set: ModelSetName = None) -> schemas.Unloaded:
        return await server.unload(implementation, model_set)

    @app.post(
        "/implementations/{implementation}/kernels",
        summary="How many kernels a request launches, counted by loading it in a process of its own, once",
        responses=problems(404, 409, 422, 500, 503),
    )
    async def kernels(
        implementation: str,
        model_set: ModelSetName = None,
        in_process: Annotated[
            bool, Query(description="count in the server itself: faster, but it may serve slower from then on")
        ] = False,
    ) -> schemas.Kernels:
        return await server.kernels(implementation, model_set, in_process)

    @app.get(
        "/model-sets/{model_set}",
        summary="The models of a set, with the source of their weights",
        responses=problems(404, 409, 422, 503),
    )
    async def model_set(model_set: str) -> schemas.ModelSetInfo:
        return await server.model_set(model_set)

    @app.post(
        "/infer/{implementation}",
        summary="Detections of every model of the set in one image",
        response_model=schemas.Inference,
        responses=problems(400, 404, 408, 409, 413, 415, 422, 429, 500, 503),
        openapi_extra=IMAGE_BODY,
    )
    async def infer(
        implementation: str,
        request: Request,
        model_set: ModelSetName = None,
        x_deadline_ms: DeadlineMs = None,
    ) -> Response:
        return await server.infer(Plain(implementation, model_set), request, x_deadline_ms)

    @app.post(
        "/time/{implementation}",
        summary="How long the device takes for a batch of the image; nothing else is served meanwhile",
        responses=problems(400, 404, 408, 409, 413, 415, 422, 500, 503),
        openapi_extra=IMAGE_BODY,
    )
    async def time(
        implementation: str,
        request: Request,
        model_set: ModelSetName = None,
        batch_size: Annotated[int, Query(ge=1, le=64, description="images in the batch")] = 1,
        repeats: Annotated[int, Query(ge=1, le=1000, description="batches; less after half a minute")] = 20,
    ) -> schemas.BatchTimes:
        return await server.time(implementation, model_set, request, batch_size, repeats)

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(server.telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    # Not by `include_router`, which makes each request look through one router after the other: 40 µs.
    app.router.routes.extend(oip.router(server).routes)
    return app
