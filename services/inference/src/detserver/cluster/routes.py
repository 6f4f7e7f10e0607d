"""Routes that all replicas of a cluster answer together, in place of those that one server has for itself."""

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST

from detserver.cluster.metrics import exposition
from detserver.cluster.siblings import Siblings
from detserver.http import schemas
from detserver.http.routes import IMAGE_BODY, ModelSetName, problems
from detserver.http.server import Server
from detserver.http.upload import read_body

# Less than the 2 s after which Prometheus gives up: a replica that hangs leaves a gap in its own series alone.
_SCRAPED_WITHIN_S = 1.0

# After a request's deadline.
_ANSWERED_S = 5.0

# Several replicas may share a device: what is used of it cannot be added up.
_OF_DEVICE = {"device_used_mb", "device_total_mb"}


def add_routes(app: FastAPI, siblings: Siblings) -> None:
    """Let an application of one replica answer for all."""
    router = APIRouter()
    server: Server = app.state.server
    started = 1

    async def starting() -> schemas.NotReadyProblem | None:
        """Why not all are there; later one may be missing for a while."""
        nonlocal started
        if started < server.settings.replicas:
            started = len(await siblings.ask("own_name"))
        if started < server.settings.replicas:
            detail = f"{started} of {server.settings.replicas} replicas can serve"
            return schemas.NotReadyProblem(detail=detail, failed=False)
        return None

    @router.get("/health", summary="Liveness, status, and what this replica and the others are")
    async def health() -> schemas.Health:
        replicas = await siblings.ask("own_info")
        return server.health().model_copy(update={"replicas": sorted(replicas, key=lambda each: each.replica)})

    @router.get(
        "/ready",
        summary="200 when as many replicas as were started together can serve",
        response_model=schemas.Ready,
        responses={503: {"model": schemas.NotReadyProblem}},
    )
    async def ready() -> Response:
        problem = server.not_ready() or await starting()
        if problem is None:
            return JSONResponse(schemas.Ready().model_dump())
        return JSONResponse(problem.model_dump(), 503, {"Retry-After": "2"})

    @router.get("/vram", summary="Memory of all replicas' processes together, on the GPU and in RAM")
    async def vram() -> schemas.Vram:
        return _together(await siblings.ask("own_memory"))

    @router.post("/vram/reset", summary="Start new peaks at what is taken now, in all replicas")
    async def reset_vram() -> schemas.Vram:
        return _together(await siblings.ask("own_memory_from_now"))

    @router.get("/metrics", summary="Prometheus metrics of all replicas, by `replica`", response_class=Response)
    async def metrics() -> Response:
        return Response(
            exposition(dict(await siblings.ask("own_metrics", limit_s=_SCRAPED_WITHIN_S))),
            media_type=CONTENT_TYPE_LATEST,
        )

    @router.post(
        "/replicas/infer/{implementation}",
        summary="What every replica finds in one image",
        responses=problems(408, 413, 415, 422, 429),
        openapi_extra=IMAGE_BODY,
    )
    async def infer_by_all(
        implementation: str, request: Request, model_set: ModelSetName = None
    ) -> list[schemas.ReplicaAnswer]:
        settings = server.settings
        query = {"model_set": model_set} if model_set else {}
        headers = {"content-type": request.headers.get("content-type", "")}
        with server.admission.body() as hold:
            body = await read_body(request, round(settings.max_upload_mb * 1e6), settings.body_timeout_s, hold)
            limit_s = settings.deadline_s + _ANSWERED_S
            return await siblings.ask("own_inference", implementation, query, headers, body, limit_s=limit_s)

    answered = {route.path for route in router.routes if isinstance(route, APIRoute)}
    kept = [route for route in app.routes if not (isinstance(route, APIRoute) and route.path in answered)]
    app.router.routes[:] = [*router.routes, *kept]


def _together(memories: list[schemas.Vram]) -> schemas.Vram:
    """The sums of what all know of themselves."""
    kinds = set(schemas.Vram.model_fields) - {"device"}
    sums: dict[str, float | None] = {}
    for kind in kinds:
        values = [getattr(each, kind) for each in memories]
        sums[kind] = None if kind in _OF_DEVICE or None in values else sum(values)
    return schemas.Vram(device=", ".join(sorted({each.device for each in memories})), **sums)
