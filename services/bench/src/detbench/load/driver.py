"""One measured load, in a process of its own because Locust patches the standard library (gevent).

    python -m detbench.load.driver --host … --implementation baseline --model-set mixed --users 4 --duration 20 …

Prints one JSON object a line: `{"phase": "warmup" | "measure" | "drain", …}` about twice a second, and last
`{"load": …}` (`detbench.results.Load`), or `{"error": "…"}` with exit status 2.
"""

# ruff: noqa: E402 (gevent's patches come before whatever they patch)
from gevent import monkey

monkey.patch_all()

import sys

# httpcore imports trio where that is installed, and trio ends on the `select` that gevent has patched.
sys.modules["trio"] = None  # type: ignore[assignment]

import argparse
import json
import time
from pathlib import Path

import gevent
from gevent.event import AsyncResult
from locust import log
from locust.env import Environment

from detbench.errors import DetbenchError
from detbench.load.locustfile import DetectorUser, export_metrics
from detbench.load.recorder import Recorder
from detbench.load.workload import prepare_workload

_POLL_S = 0.5
_DRAIN_S = 600.0


def measure(options: argparse.Namespace) -> int:
    """Run the load that the options describe; returns the exit status."""
    try:
        workload = prepare_workload(
            options.host,
            options.implementation,
            options.model_set,
            options.dataset,
            options.max_images,
            options.data_dir,
        )
    except DetbenchError as error:
        _say(error=str(error))
        return 2
    environment = Environment(
        user_classes=[DetectorUser], host=options.host, stop_timeout=_DRAIN_S, parsed_options=options
    )
    environment.workload = AsyncResult()  # type: ignore[attr-defined]
    environment.workload.set(workload)  # type: ignore[attr-defined]
    export_metrics(environment, options.metrics_port)
    environment.load_metrics.target(options.implementation, options.model_set)  # type: ignore[attr-defined]
    recorder = Recorder(options.users)
    environment.events.request.add_listener(recorder.on_request)
    runner = environment.create_local_runner()
    runner.start(options.users, spawn_rate=options.users)
    start = time.perf_counter()
    while recorder.opened is None:
        if time.perf_counter() - start > options.warmup_timeout:
            _say(error=f"{recorder.warm_users} of {options.users} users had an answer in {options.warmup_timeout:g} s")
            return 2
        _say(phase="warmup", warm_users=recorder.warm_users, users=options.users)
        gevent.sleep(_POLL_S)
    recorder.close_after(options.duration)
    cpu_start, cpu_since = time.process_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - recorder.opened) < options.duration:
        _say(phase="measure", elapsed_s=elapsed, requests=recorder.requests)
        gevent.sleep(min(_POLL_S, options.duration - elapsed))
    cpu_percent = 100 * (time.process_time() - cpu_start) / (time.perf_counter() - cpu_since)
    _say(phase="drain")
    runner.quit()
    runner.greenlet.join(_DRAIN_S)
    if log.unhandled_greenlet_exception:  # Locust goes on after a listener that failed; its counts would be wrong
        _say(error="counting the answers failed")
        return 2
    _say(load=recorder.load(cpu_percent).model_dump(mode="json"))
    return 0


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
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--duration", type=float, required=True, help="seconds")
    parser.add_argument("--warmup-timeout", type=float, default=600.0, help="seconds")
    parser.add_argument("--metrics-port", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(measure(_options()))
