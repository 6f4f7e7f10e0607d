"""Routes; what they do stands in `server`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from detserver import __version__, images, schemas, upload
from detserver.errors import DetserverError
from detserver.server import Server
from detserver.settings import Settings

_DESCRIPTION = """\
Several EfficientDet detectors run on every image; each *implementation* is one way of running them.

`curl -F file=@photo.jpg http://localhost:8000/infer/baseline`
"""

_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [upload.FIELD],
                    "properties": {upload.FIELD: {"type": "string", "format": "binary"}},
                }
            },
            **{f"image/{name.lower()}": {"schema": {"type": "string", "format": "binary"}} for name in images.FORMATS},
        },
    }
}

ModelSetName = Annotated[str | None, Query(description="a model set; the server's default where it is absent")]


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schemas.Problem} for status in statuses}


def create_app(settings: Settings) -> FastAPI:
    """The application.

    Raises:
        BadConfiguration: the settings cannot be used.
    """
    server = Server(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.engine.start()
        preload = asyncio.create_task(server.preload())
        yield
        server.close()
        await preload

    app = FastAPI(title="detserver", version=__version__, description=_DESCRIPTION, lifespan=lifespan)
    app.state.server = server

    @app.exception_handler(DetserverError)
    async def problem(_: Request, error: DetserverError) -> JSONResponse:
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
        return JSONResponse({"detail": str(error)}, error.status, headers)

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

    @app.get("/vram", summary="GPU memory now, and its peak since the last reset")
    async def vram() -> schemas.Vram:
        return server.vram_status()

    @app.post("/vram/reset", summary="Start a new peak")
    async def reset_vram() -> schemas.Vram:
        server.vram.reset_peak()
        return server.vram_status()

    @app.get("/implementations", summary="The ways of running the models")
    async def implementations() -> list[schemas.ImplementationInfo]:
        return server.implementations()

    @app.post(
        "/implementations/{implementation}/load",
        summary="Load an implementation; returns when it can serve",
        responses=_problems(404, 409, 500, 503),
    )
    async def load(implementation: str, model_set: ModelSetName = None) -> schemas.Loaded:
        return await server.load(implementation, model_set)

    @app.post(
        "/implementations/{implementation}/unload",
        summary="Unload an implementation and give its memory back",
        responses=_problems(404, 503),
    )
    async def unload(implementation: str, model_set: ModelSetName = None) -> schemas.Unloaded:
        return await server.unload(implementation, model_set)

    @app.get(
        "/model-sets/{model_set}",
        summary="The models of a set, with the source of their weights",
        responses=_problems(404, 409, 503),
    )
    async def model_set(model_set: str) -> schemas.ModelSetInfo:
        return await server.model_set(model_set)

    @app.post(
        "/infer/{implementation}",
        summary="Detections of every model of the set in one image",
        responses=_problems(400, 404, 408, 409, 413, 415, 422, 429, 500, 503),
        openapi_extra=_IMAGE_BODY,
    )
    async def infer(implementation: str, request: Request, model_set: ModelSetName = None) -> schemas.Inference:
        return await server.infer(implementation, model_set, request)

    @app.post(
        "/time/{implementation}",
        summary="How long the device takes for a batch of the image; nothing else is served meanwhile",
        responses=_problems(400, 404, 408, 409, 413, 415, 422, 500, 503),
        openapi_extra=_IMAGE_BODY,
    )
    async def time(
        implementation: str,
        request: Request,
        model_set: ModelSetName = None,
        batch_size: Annotated[int, Query(ge=1, le=64, description="images in the batch")] = 1,
        repeats: Annotated[int, Query(ge=1, le=1000, description="batches; less after a minute")] = 20,
    ) -> schemas.BatchTimes:
        return await server.time(implementation, model_set, request, batch_size, repeats)

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(server.telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    return app
