"""Running the driver as a child process, and judging what it measured."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detbench.errors import ServerError
from detbench.results import Load, MeasurementWarning

# Locust's own warning starts at 90 %: above it the generator, not the server, may set the rate.
_BUSY_CPU_PERCENT = 90.0
# With fewer answers than this the 99th percentile is the slowest one.
_FEW_REQUESTS = 100
_END_S = 10.0


@dataclass(frozen=True)
class LoadRequest:
    """One load: `users` users send photos of `dataset` to `implementation` for `duration_s` after the warm-up.

    Prometheus finds its metrics on `metrics_port` while it runs; 0 is nowhere.
    """

    host: str
    implementation: str
    model_set: str
    dataset: str
    data_dir: Path
    max_images: int
    users: int
    duration_s: float
    metrics_port: int


def run_driver(request: LoadRequest, on_message: Callable[[dict[str, Any]], None]) -> Load:
    """Measure one load.

    Args:
        on_message: called with each progress message of the driver, see `detbench.load.driver`; what it raises ends
            the driver and is raised here.

    Raises:
        ServerError: the driver ended without a result; the message is its reason.
    """
    command = [
        *(sys.executable, "-m", "detbench.load.driver"),
        *("--host", request.host),
        *("--implementation", request.implementation),
        *("--model-set", request.model_set),
        *("--dataset", request.dataset),
        *("--data-dir", str(request.data_dir)),
        *("--max-images", str(request.max_images)),
        *("--users", str(request.users)),
        *("--duration", str(request.duration_s)),
        *("--metrics-port", str(request.metrics_port)),
    ]
    reason = "the load generator ended without a result"
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                message = json.loads(line)
                if "load" in message:
                    return Load.model_validate(message["load"])
                reason = message.get("error", reason)
                on_message(message)
        except BaseException:
            process.terminate()
            raise
        process.wait()
        errors.seek(0)
        last = errors.read().strip().splitlines()[-3:]
    raise ServerError("\n".join([reason, *last]))


def warnings_of(load: Load) -> list[MeasurementWarning]:
    """What to doubt about a load that was measured."""
    warnings = []
    if load.failures:
        reason, count = max(load.errors.items(), key=lambda item: item[1])
        warnings.append(
            MeasurementWarning(
                code="failures",
                message=f"{load.failures} of {load.requests} requests failed; most often ({count}): {reason}",
                remedy="see the server's log; latency and RPS count the successful ones only",
            )
        )
    if load.generator_cpu_percent > _BUSY_CPU_PERCENT:
        warnings.append(
            MeasurementWarning(
                code="generator-busy",
                message=f"the load generator used {load.generator_cpu_percent:.0f} % of a core: it may be the limit",
                remedy="the server may be faster than shown; load it from several Locust workers, on another machine",
            )
        )
    succeeded = load.requests - load.failures
    if 0 < succeeded < _FEW_REQUESTS:
        warnings.append(
            MeasurementWarning(
                code="few-requests",
                message=f"{succeeded} answers in {load.window_s:.0f} s: p99 is the slowest of them",
                remedy="raise --duration until there are hundreds",
            )
        )
    return warnings
