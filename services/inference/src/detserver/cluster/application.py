"""The application of Ray Serve: one implementation of one model set, in as many replicas as are asked for."""

from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from detserver.cluster.replica import Replica
from detserver.errors import BadConfiguration
from detserver.settings import Settings

NAME = "detserver"
"""Of the application."""

# Beside the requests in work that a replica has places for: what it refuses in a millisecond, slow bodies, and what
# asks whether it is well. With places alone a full cluster would count as a broken one.
_ROOM = 16

# As many times the places may wait in a proxy, where they do so for a moment only: Ray counts each request there until
# it has found a replica, and would refuse some of a few that come together.
_PROXY_QUEUE = 8

_RETRY_AFTER_S = 1.0


class Arguments(BaseModel):
    """What the configuration of Serve says of the application, under `args`."""

    model_config = ConfigDict(extra="forbid")

    implementation: str = Field("fastest", description="the one that every replica serves")
    model_set: str | None = Field(None, description="None: the settings' default")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="of `Settings`, by name; what is not here is taken from DETSERVER_…"
    )


def application(arguments: Arguments) -> serve.Application:
    """The application; number of replicas and resources of each are the deployment's, in Serve's configuration.

    A replica has a GPU where the setting `device` says so, or is "auto" and the cluster has any by now; and a core.

    Raises:
        BadConfiguration: the settings cannot be used.
    """
    try:
        settings = Settings(**arguments.settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadConfiguration(f"settings: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    one = f"{arguments.implementation}@{arguments.model_set or settings.default_model_set}"
    settings = settings.model_copy(update={"preload": [one], "only_preloaded": True})
    return deployment(settings).bind(settings)


def deployment(settings: Settings) -> serve.Deployment:
    """The deployment of a server with these settings; Ray is running."""
    # A cluster whose machines with GPUs are still to come has to say it.
    on_gpu = settings.device.startswith("cuda") or (
        settings.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
    )
    make = serve.deployment(
        max_ongoing_requests=settings.queue_size + _ROOM,
        max_queued_requests=_PROXY_QUEUE * settings.queue_size,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=_RETRY_AFTER_S),
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_limit_s,
        # A line per request could fill a disk.
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if on_gpu else 0},
    )
    return make(Replica)
