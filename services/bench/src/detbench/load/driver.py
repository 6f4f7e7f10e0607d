"""One process of the load generator, apart from detbench because Locust patches the standard library (gevent).

    python -m detbench.load.driver --host … --implementation baseline --model-set mixed \\
        --offered '{"loop": "closed", "users": 4}' --duration 20 …

Prints one JSON object a line: `{"phase": "warmup" | "measure" | "drain", …}` about twice a second, and last
`{"tally": …}` (`detbench.load.tally.Tally`), or `{"error": "…"}` with exit status 2.

With --await, several of them have one start and one window. Each says `{"ready": true}`, and reads a line with the
start: seconds on CLOCK_MONOTONIC, which is the machine's. In a closed loop each says `{"warm": seconds}` when all of
its users have had an answer, and reads a line with the opening of the window: the last of these times.
"""

# ruff: noqa: E402 (gevent's patches come before whatever they patch)
from gevent import monkey

monkey.patch_all()

import sys

# httpcore imports trio where that is installed, and trio ends on the `select` that gevent has patched.
sys.modules["trio"] = None  # type: ignore[assignment]

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import NoReturn

import gevent
from gevent.event import AsyncResult
from locust import log
from locust.env import Environment
from locust.runners import Runner
from pydantic import TypeAdapter

from detbench.api.protocol import Native, Protocol
from detbench.errors import DetbenchError
from detbench.load.answers import MOST_BYTES, DistinctAnswers
from detbench.load.dispatcher import Dispatcher
from detbench.load.locustfile import DetectorUser, export_metrics
from detbench.load.metrics import LoadMetrics
from detbench.load.recorder import Recorder, Request
from detbench.load.request_log import RequestLog
from detbench.load.schedules import schedule_of
from detbench.load.workload import prepare_workload
from detbench.results.loads import ClosedLoop, Offered, OpenLoop

_POLL_S = 0.5
_START_IN_S = 0.1


class CountedUser(DetectorUser):
    """A user, or a sender, whose requests are counted."""

    def sending(self, request: Request) -> None:
        """Count it."""
        recorder: Recorder = self.environment.recorder
        recorder.sending(request)


class Driver:
    """Runs the load that the options describe.

    Raises:
        DetbenchError: it cannot be run.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        workload = prepare_workload(
            options.host,
            options.implementation,
            options.model_set,
            options.dataset,
            options.max_images,
            options.data_dir,
            options.protocol,
        )
        self._answers = DistinctAnswers(MOST_BYTES // options.workers) if options.answers else None
        self._requests = RequestLog() if options.requests else None
        self._recorder = recorder = Recorder(json.loads(options.limits), self._answers, self._requests)
        closed = isinstance(options.offered, ClosedLoop)
        self._dispatcher = Dispatcher(self._drop, 0 if closed else options.offered.seed)
        self._environment = environment = Environment(
            user_classes=[CountedUser],
            host=options.host,
            stop_timeout=options.drain,
            parsed_options=options,
        )
        environment.workload = AsyncResult()  # type: ignore[attr-defined]
        environment.workload.set(workload)  # type: ignore[attr-defined]
        environment.recorder = recorder  # type: ignore[attr-defined]
        environment.dispatcher = None if closed else self._dispatcher  # type: ignore[attr-defined]
        port = options.metrics_port and options.metrics_port + options.worker
        export_metrics(environment, port)
        self._metrics: LoadMetrics = environment.load_metrics  # type: ignore[attr-defined]
        self._metrics.target(options.implementation, options.model_set)
        self._metrics.about(options.run, str(options.offered), json.loads(options.limits))
        environment.events.request.add_listener(recorder.on_request)

    def _drop(self, scheduled_s: float) -> None:
        self._recorder.drop(scheduled_s)
        self._metrics.dropped()

    def run(self) -> None:
        """Measure, and say the tally."""
        offered, runner = self._options.offered, self._environment.create_local_runner()
        cpu_percent = (
            self._closed_loop(runner, offered) if isinstance(offered, ClosedLoop) else self._open_loop(runner, offered)
        )
        _say(phase="drain")
        runner.quit()
        runner.greenlet.join(self._options.drain)
        if log.unhandled_greenlet_exception:  # Locust goes on after a listener that failed; its counts would be wrong
            raise DetbenchError("counting the answers failed")
        tally = self._recorder.tally(cpu_percent, self._options.drain)
        if self._answers is not None:
            self._answers.write(self._options.answers)
        if self._requests is not None:
            self._requests.write(self._options.requests)
        _say(tally=tally.model_dump(mode="json"))

    def _closed_loop(self, runner: Runner, offered: ClosedLoop) -> float:
        """Measure `duration` from the moment when each user has had an answer; returns the CPU of it in percent."""
        options, recorder = self._options, self._recorder
        users = len(range(options.worker, offered.users, options.workers))
        CountedUser.numbers = itertools.count(options.worker, options.workers)
        self._sleep_until(self._agreed(ready=True) if options.wait else time.monotonic())
        runner.start(users, spawn_rate=users)
        began_s = time.monotonic()
        while recorder.warm_users < users:
            if time.monotonic() - began_s > options.warmup_timeout:
                raise DetbenchError(
                    f"{recorder.warm_users} of {users} users had an answer in {options.warmup_timeout:g} s"
                )
            _say(phase="warmup", warm_users=recorder.warm_users, users=users)
            gevent.sleep(_POLL_S)
        opened_s = self._agreed(warm=recorder.warmed_s) if options.wait else recorder.warmed_s
        recorder.open(opened_s, opened_s + options.duration)
        return self._measure(opened_s)

    def _open_loop(self, runner: Runner, offered: OpenLoop) -> float:
        """Send the schedule from the agreed start on; returns the CPU of it in percent."""
        options, recorder = self._options, self._recorder
        senders = len(range(options.worker, offered.max_in_flight, options.workers))
        schedule = schedule_of(
            **offered.model_dump(include={"rate", "arrivals", "burstiness", "steps", "seed"}),
            trace=Path(offered.trace) if offered.trace else None,
        )
        slots = schedule.slots(options.worker, options.workers)
        if options.duration < schedule.duration_s:
            slots = itertools.takewhile(lambda slot: slot.time_s < options.duration, slots)
        runner.start(senders, spawn_rate=senders)
        began_s = time.monotonic()
        while self._dispatcher.idle < senders:
            if time.monotonic() - began_s > options.warmup_timeout:
                raise DetbenchError(f"the server took {self._dispatcher.idle} of {senders} connections")
            _say(phase="warmup", warm_users=self._dispatcher.idle, users=senders)
            gevent.sleep(_START_IN_S)
        start_s = self._agreed(ready=True) if options.wait else time.monotonic() + _START_IN_S
        closes_s = start_s + options.duration
        recorder.open(start_s, closes_s)
        dispatching = gevent.spawn(self._dispatcher.run, slots, start_s, closes_s)
        self._sleep_until(start_s)
        cpu_percent = self._measure(start_s)
        dispatching.get()
        return cpu_percent

    def _measure(self, opened_s: float) -> float:
        """Wait for the end of the window; returns the CPU of this process meanwhile, 100 being one core."""
        recorder = self._recorder
        cpu_start, cpu_since = time.process_time(), time.monotonic()

        def cpu_percent() -> float:
            return 100 * (time.process_time() - cpu_start) / max(time.monotonic() - cpu_since, 1e-9)

        while (elapsed_s := time.monotonic() - opened_s) < self._options.duration:
            _say(
                phase="measure",
                elapsed_s=elapsed_s,
                requests=recorder.ended,
                failed=recorder.failed,
                dropped=recorder.dropped,
                in_flight=recorder.under_way,
                late=recorder.late(opened_s + elapsed_s),
                cpu_percent=cpu_percent(),
            )
            gevent.sleep(min(_POLL_S, self._options.duration - elapsed_s))
        return cpu_percent()

    def _agreed(self, **message: object) -> float:
        """Say `message`, and wait for the time that is told to all processes; greenlets run on meanwhile.

        Raises:
            DetbenchError: whoever started this process has ended.
        """
        _say(**message)
        line = gevent.get_hub().threadpool.apply(sys.stdin.readline)
        if not line:
            raise DetbenchError("the process that started this one has ended")
        return float(line)

    @staticmethod
    def _sleep_until(time_s: float) -> None:
        gevent.sleep(max(0.0, time_s - time.monotonic()))


def _say(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure one load; `detbench run` calls this.")
    parser.add_argument("--host", required=True)
    parser.add_argument("--implementation", required=True)
    parser.add_argument("--model-set", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--max-images", type=int, required=True)
    parser.add_argument(
        "--offered", type=TypeAdapter(Offered).validate_json, required=True, help="the whole load, JSON"
    )
    parser.add_argument(
        "--protocol", type=TypeAdapter(Protocol).validate_json, default=Native(), help="see detbench.api.protocol, JSON"
    )
    parser.add_argument("--duration", type=float, required=True, help="seconds")
    parser.add_argument("--drain", type=float, default=600.0, help="seconds that answers are waited for at the end")
    parser.add_argument(
        "--limits", default="{}", help="JSON: percentile to seconds, for progress messages and Prometheus"
    )
    parser.add_argument("--warmup-timeout", type=float, default=600.0, help="seconds")
    parser.add_argument("--metrics-port", type=int, default=0, help="of worker 0; the others take those after it")
    parser.add_argument("--requests", type=Path, help="folder for every request, see detbench.load.request_log")
    parser.add_argument("--run", default="", help="name of the run, for Prometheus")
    parser.add_argument("--answers", type=Path, help="folder for the different answers, see detbench.load.answers")
    parser.add_argument("--worker", type=int, default=0, help="this one's number, from 0")
    parser.add_argument("--workers", type=int, default=1, help="that share the load")
    parser.add_argument("--await", dest="wait", action="store_true", help="begin when a line with the time comes")
    return parser.parse_args()


def main() -> NoReturn:
    """Run the load; exits with status 0, or 2 where it could not be run."""
    try:
        Driver(_options()).run()
    except DetbenchError as error:
        _say(error=str(error))
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
