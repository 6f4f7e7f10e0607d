"""One replica: a detserver of one implementation, in a process that Ray starts, watches and ends."""

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from detserver.cluster.addresses import listen_on_node_alone
from detserver.settings import Settings
from detserver.startup import starting

if TYPE_CHECKING:
    from fastapi import FastAPI
    from prometheus_client import Metric

    from detserver.http import schemas


@serve.ingress()
class Replica:
    """What Ray Serve makes a replica of; it is ready once its implementation is loaded.

    What begins with `own_` is asked of all replicas by one, see `Siblings`.

    Args:
        settings: of the server; `preload` is what the replica serves.
    """

    def __init__(self, settings: Settings) -> None:
        listen_on_node_alone()
        self._settings = settings
        self.name: str = serve.get_replica_context().replica_id.unique_id

    async def __serve_build_asgi_app__(self) -> "FastAPI":
        """The application that answers; Ray Serve starts it by its lifespan, which ends when it can serve."""
        with starting(self._settings):
            from detserver.cluster.routes import add_routes
            from detserver.cluster.siblings import Siblings
            from detserver.http.routes import create_app

            self._app = create_app(self._settings, self.name)
            add_routes(self._app, Siblings())
        return self._app

    def check_health(self) -> None:
        """Raise where the server has failed, or could not start; Ray Serve then starts another one in its place."""
        problem = self._app.state.server.not_ready()
        if problem and problem.failed:
            raise RayServeException(problem.detail)

    async def own_name(self) -> str:
        """Its name, which says that it can serve."""
        return self.name

    async def own_info(self) -> "schemas.ReplicaInfo":
        """What this replica is."""
        from detserver.http import schemas

        server = self._app.state.server
        health = server.health()
        return schemas.ReplicaInfo(
            replica=self.name,
            node=ray.get_runtime_context().get_node_id(),
            address=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            status=health.status,
            detail=health.detail,
            weights={
                model.model_name: model.fingerprint
                for model_set in health.model_sets
                for model in model_set.models
                if model.fingerprint
            },
            memory=server.memory(),
        )

    async def own_memory(self) -> "schemas.Vram":
        """Memory of this process."""
        memory: schemas.Vram = self._app.state.server.memory()
        return memory

    async def own_memory_from_now(self) -> "schemas.Vram":
        """Memory of this process, whose peaks begin anew."""
        memory: schemas.Vram = self._app.state.server.reset_memory_peaks()
        return memory

    async def own_metrics(self) -> "tuple[str, list[Metric]]":
        """Its name, and what Prometheus would be told of this replica alone."""
        return self.name, list(self._app.state.server.telemetry.registry.collect())

    async def own_inference(
        self, implementation: str, query: dict[str, Any], headers: dict[str, str], body: bytes
    ) -> "schemas.ReplicaAnswer":
        """What this replica answers to `POST /infer/{implementation}`."""
        import httpx

        from detserver.http import schemas

        asked = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=asked, base_url="http://replica") as client:
            response = await client.post(
                f"/infer/{quote(implementation, safe='')}", params=query, headers=headers, content=body
            )
        shape = schemas.Inference if response.is_success else schemas.Problem
        answer = shape.model_validate_json(response.content)
        return schemas.ReplicaAnswer(replica=self.name, status=response.status_code, answer=answer)
