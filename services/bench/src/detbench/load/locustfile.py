"""Locust file: users that send one photo after the other to an implementation and check every answer.

    locust -f locustfile.py                                       # web UI on port 8089
    locust -f locustfile.py --headless -u 8 -t 30s --csv load     # the same without it
    locust -f locustfile.py --processes 4 …                       # from four processes and a master of theirs

The server is at `--host`, else BENCHMARK_HOST, else http://localhost:8000; it is asked directly, whatever proxy the
environment names. Implementation, model set, dataset and image count are options, fields of the web UI's start form
("Custom parameters"; the drop-downs hold what the server offers), and environment variables: BENCHMARK_IMPLEMENTATION,
BENCHMARK_MODEL_SET, BENCHMARK_DATASET, BENCHMARK_MAX_IMAGES, BENCHMARK_DATA_DIR. With `--rate` or `--steps`, fields of
the form as well, it is an open loop: users are the senders, and all workers together send one schedule.

The implementation is loaded before users are sent out: the run time and Locust's statistics begin when the load does. A
test that cannot begin, or that had not one answer, ends with an exit status that is not 0.

With BENCHMARK_METRICS_PORT, Prometheus finds counters and a latency histogram there. Workers that `--processes` starts
take the ports after it: the first worker the next one, and so on.
"""

import argparse
import contextlib
import itertools
import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from greenlet import GreenletExit
from locust import User, constant, events, stats, task
from locust.env import Environment
from locust.exception import CatchResponseError, StopUser
from locust.runners import STATE_SPAWNING, LocalRunner, MasterRunner, WorkerRunner

from detbench.api.client import REFUSED_IMAGE, base_url
from detbench.api.protocol import Native
from detbench.errors import DetbenchError
from detbench.load.dispatcher import Dispatcher, yield_until
from detbench.load.http_connection import Answer, Connection
from detbench.load.locust_options import server_host
from detbench.load.metrics import LOADING, LoadMetrics, RunnerState, serve
from detbench.load.recorder import Request
from detbench.load.schedules import photo_of, schedule_of
from detbench.load.shared_schedule import READY, SHARE, OpenLoop, Sharing, begin_alone, report_ready, take_share
from detbench.load.workload import Image, Workload, check_answer, load_into_server, prepare_workload, read_images
from detbench.variables import forget_empty_variables

if TYPE_CHECKING:  # gevent's class takes no arguments when it runs
    Preparing = gevent.Greenlet[..., Workload | DetbenchError]

forget_empty_variables()  # Locust reads variables after it has imported this file

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look at what the server offers

# A closed loop would otherwise send failures as fast as they come: to a dead server, thousands per second.
_PAUSE_AFTER_FAILURE_S = 0.1
_GIVE_UP = "detbench_give_up"
_SPAWNING_TAKES_S = 60.0
_NEVER_S = 10**6

_sharing = Sharing()
_spawned = Event()
_initialised = Event()


class DetectorUser(User):
    """Sends photos back to back, each user starting at another one: a closed loop. With the environment's `dispatcher`
    it sends the slots of an open loop, each with the photo of its number.
    """

    wait_time = constant(0)
    numbers = itertools.count()

    def on_start(self) -> None:
        """Wait for what there is to send."""
        workload: Workload | DetbenchError = self.environment.workload.get()
        self.workload = workload if isinstance(workload, Workload) else None
        self._metrics: LoadMetrics = self.environment.load_metrics
        self.number = next(self.numbers)
        images = self.workload.images if self.workload else ()
        self._images: Iterator[Image] = itertools.cycle(_rotate(images, self.number))
        self._dispatcher: Dispatcher | None = self.environment.dispatcher
        assert self.host is not None
        self._connection = Connection(self.host)
        if self._dispatcher is not None:  # so that no slot's latency holds it, nor do all connect when the load begins
            protocol = self.workload.protocol if self.workload else Native()
            self._connection.send(self._connection.get_message(protocol.health))

    @task
    def infer(self) -> None:
        """Send the next photo."""
        if self.workload is None:
            raise StopUser  # not in `on_start`, where Locust logs it as an error
        self.send_next(self.workload)

    def send_next(self, workload: Workload) -> None:
        """Send the next photo, in an open loop at its time. A subclass overrides this: Locust would run both tasks."""
        if self._dispatcher is not None:
            number, scheduled_s = self._dispatcher.next_task()
            photo = photo_of(number, len(workload.images), self._dispatcher.seed)
            self.send(workload.images[photo], workload, scheduled_s)
        elif not self.send(next(self._images), workload):
            gevent.sleep(_PAUSE_AFTER_FAILURE_S)

    def send(self, image: Image, workload: Workload, scheduled_s: float | None = None) -> bool:
        """Send one photo; whether the answer is well-formed and has detections of every model of the set.

        Args:
            scheduled_s: when it was to be sent, on CLOCK_MONOTONIC; None: now.
        """
        self._metrics.started()
        message = self._connection.post_message(
            workload.protocol.message(workload.implementation, workload.model_set, image.data, image.content_type)
        )
        if scheduled_s is not None:
            yield_until(scheduled_s)
        sent_s = time.monotonic()
        request = Request(self.number, sent_s, sent_s if scheduled_s is None else scheduled_s, photo=image.sha256)
        self.sending(request)
        answer = self._connection.send(message)
        failure = None
        try:
            if answer.error or answer.status_code != 200:
                raise ValueError(answer.error or _failure(image.name, answer))
            request.answer = check_answer(answer.content, image, workload)
        except ValueError as error:
            failure = CatchResponseError(str(error))
        self.environment.events.request.fire(
            request_type="POST",
            name=f"{workload.implementation} {workload.model_set}",
            response_time=1e3 * (answer.answered_s - sent_s),
            response_length=len(answer.content),
            response=answer,
            exception=failure,
            context={"request": request},
        )
        return failure is None

    def sending(self, request: Request) -> None:
        """Called with each request when it is sent; for those who count them."""


def export_metrics(environment: Environment, port: int) -> None:
    """Count every request of `environment`; answer Prometheus on `port` unless it is 0."""
    metrics = LoadMetrics()
    environment.load_metrics = metrics  # type: ignore[attr-defined]
    environment.events.request.add_listener(metrics.on_request)
    if not isinstance(environment.runner, WorkerRunner):
        metrics.registry.register(RunnerState(environment))
    if port:
        try:
            serve(metrics, port)
        except (OSError, OverflowError) as error:  # a load is worth having without them
            log.error("no metrics for Prometheus on port %d: %s; see --metrics-port", port, error)


@events.init.add_listener
def start_process(environment: Environment, **_: Any) -> None:
    """Export the metrics of this process, and prepare a test that Locust starts by itself.

    Locust counts `--run-time` from the moment when the listeners of this event are through.
    """
    try:
        _start_process(environment)
    finally:
        _initialised.set()


def _start_process(environment: Environment) -> None:
    options, runner = environment.parsed_options, environment.runner
    assert options is not None
    environment.host = server_host(environment.host)
    metrics_port = options.metrics_port
    if metrics_port and options.processes and isinstance(runner, WorkerRunner):
        metrics_port += 1 + runner.worker_index  # a fork, with the options of the process that was started
    export_metrics(environment, metrics_port)
    environment.events.spawning_complete.add_listener(lambda **_: gevent.spawn(_begin_open_loop, environment))
    environment.prepared = False  # type: ignore[attr-defined]
    environment.dispatcher = environment.open_loop = None  # type: ignore[attr-defined]
    if isinstance(runner, MasterRunner):
        runner.register_message(_GIVE_UP, give_up, concurrent=True)
        runner.register_message(READY, _sharing.on_ready)
    if isinstance(runner, WorkerRunner):
        runner.register_message(SHARE, take_share)
        gevent.spawn(_read_ahead, options)
    elif options.headless or options.autostart:
        environment.workload = gevent.spawn(_prepared, environment)  # type: ignore[attr-defined]
        _join_unless_stopped(environment)
        environment.prepared = True  # type: ignore[attr-defined]


@events.test_start.add_listener
def prepare_test(environment: Environment, **_: Any) -> None:
    """Prepare the workload of this process, unless it is.

    Where the decision lies, at a master or a Locust that runs alone, no user is sent out before. A worker prepares
    while its users wait: one that does not listen to its master for a minute ends itself.
    """
    _initialised.wait()  # a worker is connected before it is, and its master may be quicker
    _spawned.clear()
    _sharing.begin()
    prepared, environment.prepared = environment.prepared, False  # type: ignore[attr-defined]
    environment.process_exit_code = None
    held = _hold_run_time(environment)
    if not prepared:
        environment.workload = gevent.spawn(_prepared, environment)  # type: ignore[attr-defined]
    preparing: Preparing = environment.workload  # type: ignore[attr-defined]
    preparing.link(lambda _: _begin_or_give_up(environment, preparing, held))
    if isinstance(environment.runner, WorkerRunner):
        return
    if not preparing.ready() and environment.runner is not None:
        environment.runner.update_state(STATE_SPAWNING)  # so that it can be stopped: Locust ignores that before
    if isinstance(preparing.get(), DetbenchError):
        raise GreenletExit  # of the greenlet that would send out users now


@events.test_stop.add_listener
def stop_preparing(environment: Environment, **_: Any) -> None:
    """What a stopped test prepared is no concern of the next one."""
    preparing = getattr(environment, "workload", None)
    if isinstance(preparing, gevent.Greenlet):
        preparing.kill(block=False)
    open_loop: OpenLoop | None = getattr(environment, "open_loop", None)
    if open_loop is not None:
        open_loop.end()


@events.spawning_complete.add_listener
def note_spawned(**_: Any) -> None:
    """All users are there, and wait for the workload."""
    _spawned.set()


@events.quitting.add_listener
def end_process(environment: Environment, **_: Any) -> None:
    """Fail a test without an answer, and let Locust write its files to the end."""
    runner, options = environment.runner, environment.parsed_options
    if isinstance(runner, WorkerRunner) or not hasattr(environment, "workload"):
        return
    if isinstance(runner, LocalRunner):
        runner.quit()  # a master has been ended by now, and its workers have reported
    if options is not None and options.csv_prefix:
        # Locust writes its files so often, and not at the end. The one time that is left, then no more: it closes them.
        interval_s, stats.CSV_STATS_INTERVAL_SEC = stats.CSV_STATS_INTERVAL_SEC, _NEVER_S
        gevent.sleep(interval_s)
    if environment.stats.total.num_requests == 0:
        log.error("no request was answered before the test ended; give it more time (--run-time)")
        environment.process_exit_code = 2


def give_up(environment: Environment, **_: Any) -> None:
    """End a test that cannot begin; in the web UI another one can be started."""
    assert environment.runner is not None
    environment.process_exit_code = 2
    if environment.web_ui is None:
        environment.runner.quit()
    else:
        environment.runner.stop()


def _prepared(environment: Environment) -> Workload | DetbenchError:
    """The workload that the options describe, or why there is none. A master's has no images: it sends none."""
    options = environment.parsed_options
    assert options is not None
    environment.load_metrics.target(options.implementation, options.model_set)  # type: ignore[attr-defined]
    what = (options.implementation, options.model_set)
    environment.dispatcher = environment.open_loop = None  # type: ignore[attr-defined]
    try:
        if options.rate or options.steps or options.arrivals or options.burstiness:
            _prepare_open_loop(environment, options)
        host = environment.host = base_url(server_host(environment.host))
        if isinstance(environment.runner, MasterRunner):
            return Workload(Native(), *what, load_into_server(host, *what), images=())
        return prepare_workload(host, *what, options.dataset, options.max_images, Path(options.data_dir))
    except DetbenchError as error:
        return error


def _prepare_open_loop(environment: Environment, options: argparse.Namespace) -> None:
    # What is empty, or 0, in the start form is not given.
    given = {name: getattr(options, name) or None for name in ("rate", "arrivals", "burstiness", "steps")}
    schedule = schedule_of(**given, seed=options.seed)
    metrics: LoadMetrics = environment.load_metrics  # type: ignore[attr-defined]
    open_loop = OpenLoop(schedule, options.seed, lambda _: metrics.dropped())
    environment.open_loop = open_loop  # type: ignore[attr-defined]
    environment.dispatcher = open_loop.dispatcher  # type: ignore[attr-defined]


def _begin_open_loop(environment: Environment) -> None:
    """Send, or have sent, the schedule when everything is ready; again when the number of users has changed."""
    environment.workload.join()  # type: ignore[attr-defined]
    if environment.open_loop is None:  # type: ignore[attr-defined]
        return
    if isinstance(environment.runner, MasterRunner):
        _sharing.watch(environment)
    elif isinstance(environment.runner, WorkerRunner):
        report_ready(environment)
    else:
        begin_alone(environment)


def _read_ahead(options: argparse.Namespace) -> None:
    """Read what a test will most likely send: a worker's users are sent out before it could."""
    with contextlib.suppress(DetbenchError):  # told when a test asks for it
        read_images(options.dataset, options.max_images, Path(options.data_dir))


def _join_unless_stopped(environment: Environment) -> None:
    """Wait for the workload. Locust, which is about to start, does not yet end well on SIGINT and SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        environment.workload.join()  # type: ignore[attr-defined]
    except KeyboardInterrupt:
        log.error("stopped while the implementation was loading")
        if environment.runner is not None:
            environment.runner.quit()
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin_or_give_up(environment: Environment, preparing: "Preparing", run_time_held: bool) -> None:
    """Start the clocks of a test that can begin; end one that cannot, with the reason among Locust's failures."""
    if environment.workload is not preparing:  # type: ignore[attr-defined] # of a test that was stopped meanwhile
        return
    outcome = preparing.value
    if isinstance(outcome, Workload) and not isinstance(environment.runner, WorkerRunner):
        environment.stats.reset_all()
        if run_time_held:
            _start_run_time(environment)
    if not isinstance(outcome, DetbenchError):
        return
    log.error("no load: %s", outcome)
    options = environment.parsed_options
    assert options is not None
    environment.events.request.fire(
        request_type=LOADING,
        name=f"{options.implementation} {options.model_set}",
        response_time=0,
        response_length=0,
        exception=outcome,
        context={},
    )
    if not isinstance(environment.runner, WorkerRunner):
        give_up(environment)
        return
    environment.process_exit_code = 2
    _spawned.wait(_SPAWNING_TAKES_S)  # a master that still sends out users would start the test again
    if environment.workload is preparing:  # type: ignore[attr-defined]
        environment.runner.send_message(_GIVE_UP)


def _hold_run_time(environment: Environment) -> bool:
    """Stop the clock of a run time that was given in the web UI; Locust has no public handle on it."""
    web_ui = environment.web_ui
    if web_ui is None or web_ui._run_time_greenlet is None:
        return False
    web_ui._cancel_run_time_timer()
    return True


def _start_run_time(environment: Environment) -> None:
    web_ui, options = environment.web_ui, environment.parsed_options
    assert web_ui is not None
    assert options is not None
    web_ui._cancel_run_time_timer()  # of who started the same test again while it was loading
    web_ui._run_time_greenlet = gevent.spawn_later(options.run_time, web_ui._stop_runners)


def _rotate(images: Sequence[Image], by: int) -> Sequence[Image]:
    start = by % max(len(images), 1)
    return [*images[start:], *images[:start]]


def _failure(photo: str, answer: Answer) -> str:
    whose = f"{photo}: " if answer.status_code in REFUSED_IMAGE else ""
    return f"{whose}HTTP {answer.status_code}: {answer.content[:200].decode(errors='replace')}"
