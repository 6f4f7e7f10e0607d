"""The routes of the Open Inference Protocol; what they do stands in `server` and in `oip`."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, StrictBool, ValidationError

from detserver import __version__
from detserver.engine.work import Key
from detserver.errors import BadInferRequest
from detserver.http.deadlines import DeadlineMs
from detserver.http.oip.inference import Inference
from detserver.http.oip.models import check_version, config, key_of, metadata, model_name
from detserver.http.server import Server
from detserver.http.upload import read_body

PREFIX = "/v2"

_EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "model_repository(unload_dependents)"]
_EXTENSIONS += ["statistics"]

# Of a request to the repository.
_MOST_BYTES, _LIMIT_S = 64_000, 10.0


class _Repository(BaseModel):
    model_config = ConfigDict(extra="ignore")

    ready: StrictBool = False
    parameters: dict[str, Any] = {}


def router(server: Server) -> APIRouter:
    """The routes of `server`."""
    routes = APIRouter(prefix=PREFIX, include_in_schema=False)  # the protocol has a description of its own

    def key(model: str, request: Request) -> Key:
        check_version(request)
        return server.key(*key_of(model))

    # First: routes are tried in this order, at some microseconds each.
    @routes.post("/models/{model}/infer")
    @routes.post("/models/{model}/versions/{version}/infer")
    async def infer(model: str, request: Request, x_deadline_ms: DeadlineMs = None) -> Response:
        check_version(request)
        return await server.infer(Inference(model), request, x_deadline_ms)

    @routes.get("")
    async def about() -> Response:
        return JSONResponse({"name": "detserver", "version": __version__, "extensions": _EXTENSIONS})

    @routes.get("/health/live")
    async def live() -> Response:
        return JSONResponse({"live": True})

    @routes.get("/health/ready")
    async def ready() -> Response:
        return _readiness({"ready": server.not_ready() is None})

    @routes.get("/models/stats")
    async def all_statistics() -> Response:
        return JSONResponse({"model_stats": [_statistics(server, each) for each in server.engine.loaded]})

    @routes.get("/models/{model}")
    @routes.get("/models/{model}/versions/{version}")
    async def about_model(model: str, request: Request) -> Response:
        key(model, request)
        return JSONResponse(metadata(model))

    @routes.get("/models/{model}/ready")
    @routes.get("/models/{model}/versions/{version}/ready")
    async def model_ready(model: str, request: Request) -> Response:
        loaded = key(model, request) in server.engine.loaded
        return _readiness({"name": model, "ready": loaded and server.not_ready() is None})

    @routes.get("/models/{model}/config")
    @routes.get("/models/{model}/versions/{version}/config")
    async def configuration(model: str, request: Request) -> Response:
        asked = key(model, request)
        model_set = server.zoo.model_set(asked[1])
        batch_size = server.engine.batch_size(server.registry.get(asked[0]))
        return JSONResponse(config(model, model_set, server.device.type == "cuda", batch_size))

    @routes.get("/models/{model}/stats")
    @routes.get("/models/{model}/versions/{version}/stats")
    async def statistics(model: str, request: Request) -> Response:
        return JSONResponse({"model_stats": [_statistics(server, key(model, request))]})

    @routes.post("/repository/index")
    async def index(request: Request) -> Response:
        asked = await _read(request)
        rows = []
        for row in server.implementations():
            for model_set in row.model_sets:
                name = model_name((row.name, model_set), server.settings.default_model_set)
                if model_set in row.loaded:
                    rows.append({"name": name, "version": "1", "state": "READY", "reason": ""})
                elif not asked.ready:
                    rows.append({"name": name, "version": "1", "state": "UNAVAILABLE", "reason": "not loaded"})
        return JSONResponse(rows)

    @routes.post("/repository/models/{model}/load")
    async def load(model: str, request: Request) -> Response:
        if (await _read(request)).parameters:
            raise BadInferRequest("parameters: a model here is loaded as it is, without a configuration or files")
        await server.load(*key_of(model))
        return JSONResponse({})

    @routes.post("/repository/models/{model}/unload")
    async def unload(model: str, request: Request) -> Response:
        await _read(request)
        await server.unload(*key_of(model))
        return JSONResponse({})

    return routes


def _statistics(server: Server, key: Key) -> dict[str, Any]:
    return server.statistics.shown(key, model_name(key, server.settings.default_model_set))


def _readiness(answer: dict[str, Any]) -> Response:
    return JSONResponse(answer, 200 if answer["ready"] else 400)  # by the protocol: 4xx is no


async def _read(request: Request) -> _Repository:
    """What a request to the repository says; nothing at all is allowed, too.

    Raises:
        BadInferRequest: it is no JSON, or not the protocol's.
    """
    body = await read_body(request, _MOST_BYTES, _LIMIT_S, lambda _: None)
    try:
        return _Repository.model_validate_json(body) if body else _Repository()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadInferRequest(f"the body of the request: {first['msg']}") from error
