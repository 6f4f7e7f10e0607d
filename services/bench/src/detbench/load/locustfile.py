"""Locust file: users that send one photo after the other to an implementation and check every answer.

    locust -f locustfile.py --host http://localhost:8000                          # web UI on port 8089
    locust -f locustfile.py --host … --headless -u 8 -t 30s --csv outputs/load    # the same without it

Implementation, model set, dataset and image count are options, fields of the web UI's start form, and environment
variables: BENCHMARK_IMPLEMENTATION, BENCHMARK_MODEL_SET, BENCHMARK_DATASET, BENCHMARK_MAX_IMAGES, BENCHMARK_DATA_DIR.
With BENCHMARK_METRICS_PORT, Prometheus finds counters and a latency histogram there.
In the web UI they are under "Custom parameters"; the drop-downs hold what the server at `--host` offers.
"""

import argparse
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner
from pydantic import ValidationError

from detbench.client import Inference, ServerClient
from detbench.datasets import fetch_or_open
from detbench.errors import DetbenchError, ServerError
from detbench.load.metrics import LOADING, LoadMetrics, RunnerState, serve

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look at what the server offers

DEFAULT_HOST = "http://localhost:8000"
# A closed loop would otherwise send failures as fast as they come: to a dead server, thousands per second.
_PAUSE_AFTER_FAILURE_S = 0.1
_GIVE_UP = "detbench_give_up"
_SPAWNING_TAKES_S = 60.0

_spawned = Event()


@dataclass(frozen=True)
class Image:
    """One encoded photo, in memory."""

    name: str
    content_type: str
    data: bytes


@dataclass(frozen=True)
class Workload:
    """What the users of this process send, and what a good answer holds."""

    implementation: str
    model_set: str
    model_names: tuple[str, ...]
    images: tuple[Image, ...]


def prepare_workload(
    host: str, implementation: str, model_set: str, dataset: str, max_images: int, data_dir: Path
) -> Workload:
    """Load the photos into memory, and the implementation into the server.

    Raises:
        DatasetError: the dataset is not there; `sample` is fetched.
        ServerError: no answer, or the server refuses to load.
    """
    photos = fetch_or_open(dataset, data_dir, max_images).photos
    with ServerClient(host) as client:
        client.load(implementation, model_set)
        names = tuple(model.model_name for model in client.model_set(model_set).models)
    images = tuple(Image(photo.name, photo.content_type, photo.path.read_bytes()) for photo in photos)
    return Workload(implementation, model_set, names, images)


def check_answer(body: bytes, workload: Workload) -> Inference:
    """Parse an answer.

    Raises:
        ValueError: not well-formed, or not detections of every model of the set; the message is short and without
            values, so that Locust counts equal failures as one.
    """
    try:
        answer = Inference.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"malformed answer: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    names = tuple(detections.model_name for detections in answer.detections)
    if names != workload.model_names:
        raise ValueError(f"detections of {', '.join(names) or 'no model'}, not of {', '.join(workload.model_names)}")
    return answer


class DetectorUser(FastHttpUser):
    """Sends photos back to back: a closed loop. Each user starts at another photo."""

    wait_time = constant(0)
    network_timeout = 600.0
    connection_timeout = 10.0

    _numbers = itertools.count()

    def on_start(self) -> None:
        """Wait for what there is to send."""
        self._workload: Workload | None = self.environment.workload.get()
        self._metrics: LoadMetrics = self.environment.load_metrics
        self._number = next(self._numbers)
        images = self._workload.images if self._workload else ()
        self._images: Iterator[Image] = itertools.cycle(_rotate(images, self._number))

    @task
    def infer(self) -> None:
        """Send one photo; a success is a well-formed answer with detections of every model of the set."""
        workload = self._workload
        if workload is None:
            raise StopUser  # not in `on_start`, where Locust logs it as an error
        image = next(self._images)
        self._metrics.started()
        # Locust hands its listeners a copy of the context; `outcome` is what reaches them.
        outcome: dict[str, Inference] = {}
        with self.client.post(
            f"/infer/{workload.implementation}?model_set={workload.model_set}",
            data=image.data,  # type: ignore[arg-type] # bytes are right; Locust's annotation says str
            headers={"Content-Type": image.content_type},
            name=f"{workload.implementation} {workload.model_set}",
            context={"user": self._number, "outcome": outcome},
            catch_response=True,
        ) as response:
            try:
                if response.status_code != 200:
                    raise ValueError(_failure(response.status_code, response.content))
                outcome["answer"] = check_answer(response.content, workload)
                response.success()
            except ValueError as error:
                response.failure(str(error))
        if not outcome:
            gevent.sleep(_PAUSE_AFTER_FAILURE_S)


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add our options; the web UI makes fields of them, and drop-downs of those with choices."""
    implementations, model_sets = _offered(_host_of_command_line())
    for option, default, choices, help_text in (
        ("implementation", "baseline", implementations, "way of running the models"),
        ("model-set", "mixed", model_sets, "detectors that run on every image"),
        ("dataset", "sample", None, "photos to send: a dataset's name, or a folder"),
    ):
        parser.add_argument(
            f"--{option}",
            env_var=f"BENCHMARK_{option.replace('-', '_').upper()}",
            default=default,
            choices=choices,
            help=help_text,
        )
    parser.add_argument(
        "--max-images", type=int, env_var="BENCHMARK_MAX_IMAGES", default=100, help="photos held in memory at most"
    )
    parser.add_argument(
        "--data-dir",
        env_var="BENCHMARK_DATA_DIR",
        default="data",
        include_in_web_ui=False,
        help="folder of the datasets",
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        env_var="BENCHMARK_METRICS_PORT",
        default=0,
        include_in_web_ui=False,
        help="port on which Prometheus finds the metrics of this process; 0: none",
    )


def export_metrics(environment: Environment, port: int) -> None:
    """Count every request of `environment`; answer Prometheus on `port` unless it is 0."""
    metrics = LoadMetrics()
    environment.load_metrics = metrics  # type: ignore[attr-defined]
    environment.events.request.add_listener(metrics.on_request)
    if not isinstance(environment.runner, WorkerRunner):
        metrics.registry.register(RunnerState(environment))
    if port:
        serve(metrics, port)


@events.init.add_listener
def start_process(environment: Environment, **_: Any) -> None:
    """Export the metrics of this process, and let the workers of a master tell it that a test cannot begin."""
    options = environment.parsed_options
    export_metrics(environment, options.metrics_port if options else 0)
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(_GIVE_UP, give_up, concurrent=True)


@events.test_start.add_listener
def start_preparing(environment: Environment, **_: Any) -> None:
    """Prepare the workload of this process while its users wait for it.

    Not in this listener itself: loading an implementation may take minutes, and a worker that does not listen to its
    master for one ends itself.
    """
    _spawned.clear()
    if (previous := getattr(environment, "workload", None)) is not None:
        previous.kill(block=False)  # of a test that was stopped meanwhile: its failure must not end this one
    if environment.parsed_options is not None and not getattr(environment.parsed_options, "master", False):
        environment.workload = gevent.spawn(_prepared, environment)  # type: ignore[attr-defined]


def _prepared(environment: Environment) -> Workload | None:
    """The workload that the options describe; None, with the reason among Locust's failures, where there is none."""
    options = environment.parsed_options
    assert options is not None
    environment.load_metrics.target(options.implementation, options.model_set)  # type: ignore[attr-defined]
    try:
        return prepare_workload(
            environment.host or DEFAULT_HOST,
            options.implementation,
            options.model_set,
            options.dataset,
            options.max_images,
            Path(options.data_dir),
        )
    except DetbenchError as error:
        log.error("no load: %s", error)
        environment.events.request.fire(
            request_type=LOADING,
            name=f"{options.implementation} {options.model_set}",
            response_time=0,
            response_length=0,
            exception=error,
            context={},
        )
        environment.process_exit_code = 2
        _spawned.wait(_SPAWNING_TAKES_S)  # a master that still sends out users would start the test again
        if isinstance(environment.runner, WorkerRunner):
            environment.runner.send_message(_GIVE_UP)
        else:
            give_up(environment)
        return None


@events.spawning_complete.add_listener
def note_spawned(**_: Any) -> None:
    """All users are there, and wait for the workload."""
    _spawned.set()


def give_up(environment: Environment, **_: Any) -> None:
    """End a test that cannot begin; in the web UI another one can be started."""
    assert environment.runner is not None
    if environment.web_ui is None:
        environment.runner.quit()
    else:
        environment.runner.stop()


def _rotate(images: Sequence[Image], by: int) -> Sequence[Image]:
    start = by % max(len(images), 1)
    return [*images[start:], *images[:start]]


def _failure(status: int, body: bytes | None) -> str:
    if status == 0:
        return "no answer: connection refused, broken, or timed out"
    return f"HTTP {status}: {(body or b'')[:200].decode(errors='replace')}"


def _host_of_command_line() -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-H", "--host", default=os.environ.get("LOCUST_HOST", DEFAULT_HOST))
    host: str = parser.parse_known_args(sys.argv[1:])[0].host
    return host


def _offered(host: str) -> tuple[list[str] | None, list[str] | None]:
    """Implementations that can run there, and model sets; None, so a free field, while the server does not answer."""
    try:
        with ServerClient(host, timeout_s=2.0) as client:
            available = [row for row in client.implementations() if row.unavailable is None]
    except ServerError as error:
        log.warning("no drop-downs: %s", error)
        return None, None
    model_sets = dict.fromkeys(name for row in available for name in row.model_sets)
    return [row.name for row in available], list(model_sets)
