"""`detserver --replicas N`: a cluster of Ray on this machine alone, which ends with the process that has started it."""

import logging
import math
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from detserver.cluster.application import NAME, deployment
from detserver.errors import BadConfiguration
from detserver.machine.cpus import usable_cpus
from detserver.settings import Settings

log = logging.getLogger(__name__)

# Where Ray keeps bodies and answers of more than 100 kB for the moment that they pass from process to process.
_STORE_BYTES = 256_000_000


def serve_replicas(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT ends the process by `SystemExit` or `KeyboardInterrupt`.

    Ray's own ports are open on 127.0.0.1 alone: who can talk to Ray can run any program. `__main__` sees to that.

    Raises:
        BadConfiguration: not one implementation is preloaded, or the replicas cannot serve it.
    """
    if len(settings.preload) != 1:
        raise BadConfiguration("--replicas serves one implementation: say which, as in --preload fastest@mixed")
    with _cluster():
        each = _share(settings)
        try:
            serve.start(
                proxy_location="HeadOnly",
                logging_config=LoggingConfig(log_level="WARNING"),
                http_options={
                    "host": settings.host,
                    "port": settings.port,
                    "keep_alive_timeout_s": settings.keep_alive_s,
                },
            )
            replicas = deployment(each).options(
                num_replicas=settings.replicas,
                max_constructor_retry_count=1,  # what fails at the start would fail at Ray's second and third try, too
                ray_actor_options=_resources(settings.replicas),
            )
            serve.run(replicas.bind(each), name=NAME)
        except (RuntimeError, TimeoutError) as error:
            raise BadConfiguration(_reason(error)) from error
        log.info("%d replicas ready on http://%s:%d", settings.replicas, settings.host, settings.port)
        while True:
            signal.pause()


@contextmanager
def _cluster() -> Iterator[None]:
    """Ray in the block, with this process as its driver."""
    at_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(
        address="local",
        num_cpus=usable_cpus(),
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        logging_level=logging.WARNING,
    )
    signal.signal(signal.SIGTERM, at_sigterm)  # Ray's own ends the process without an end of the replicas
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def _share(settings: Settings) -> Settings:
    """The settings of each replica, which has its share of the processor cores; files are found from anywhere."""
    cores = max(1, usable_cpus() // settings.replicas)
    file = settings.model_sets_file
    return settings.model_copy(
        update={
            "only_preloaded": True,
            "torch_threads": settings.torch_threads or cores,
            "decode_threads": settings.decode_threads or cores,
            "data_dir": settings.data_dir.absolute(),
            "model_sets_file": file and file.absolute(),
        }
    )


def _resources(replicas: int) -> dict[str, Any]:
    """What each of so many replicas takes of this machine: an equal share; several share a GPU where they have to."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    return {
        "num_cpus": math.floor(1e3 * usable_cpus() / replicas) / 1e3,
        "num_gpus": 1 / math.ceil(replicas / gpus) if gpus else 0,
    }


def _reason(error: RuntimeError | TimeoutError) -> str:
    """What is wrong: the last line of the traceback that Ray keeps of the replicas, or else of the error."""
    found = serve.status().applications.get(NAME)
    messages = [each.message for each in found.deployments.values()] if found else [str(error)]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1]) if lines else repr(error)
