"""The load generator: its processes, which start together, and the sum of what they measured."""

import contextlib
import json
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from detbench.api.protocol import Native, Protocol
from detbench.errors import ServerError
from detbench.load.figures import load_of
from detbench.load.tally import Tally, merged, summed
from detbench.measure.generator_process import GeneratorProcess
from detbench.results.loads import ClosedLoop, Load, Objective, OpenLoop

# Until the start that all processes are told: what a line needs to be read in each, on a machine that is busy.
_START_IN_S = 0.3
_DRAIN_S = 600.0


@dataclass(frozen=True)
class LoadRequest:
    """One load: photos of `dataset` are sent to `implementation` as `offered` says for `duration_s` after the warm-up.

    `processes` send it together, each with a core of its own at best. Prometheus finds the metrics of the first on
    `metrics_port` while it runs, of the others on the ports after it; 0 is nowhere. `run`, the name of the run, and the
    latencies among the limits `slo` are among them; progress messages count the requests that miss each of these.
    Answers are waited for until `drain_s` after the end; the different ones are in `answers_dir` then, for
    `detbench.load.answers.read_answers`, and every request in `requests_dir`, for
    `detbench.load.request_log.merge_requests`; None: they are not kept.
    """

    host: str
    implementation: str
    model_set: str
    dataset: str
    data_dir: Path
    max_images: int
    offered: ClosedLoop | OpenLoop
    duration_s: float
    metrics_port: int = 0
    processes: int = 1
    drain_s: float = _DRAIN_S
    run: str = ""
    slo: tuple[Objective, ...] = ()
    answers_dir: Path | None = None
    requests_dir: Path | None = None
    protocol: Protocol = field(default_factory=Native)


@dataclass
class _Worker:
    """One process, and what it has said so far."""

    process: GeneratorProcess
    errors: IO[str]
    said: dict[str, Any] = field(default_factory=dict)
    tally: Tally | None = None

    def tell(self, time_s: float) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, which its output tells
            self.process.stdin.write(f"{time_s!r}\n")
            self.process.stdin.flush()

    def why_ended(self) -> str:
        status = self.process.wait()
        self.errors.seek(0)
        reason = self.said.get("error", f"the load generator ended without a result (exit status {status})")
        return "\n".join([reason, *self.errors.read().strip().splitlines()[-3:]])


def run_load(request: LoadRequest, on_message: Callable[[dict[str, Any]], None]) -> Load:
    """Measure one load.

    Args:
        on_message: called with each progress message, see `detbench.load.driver`, whose counts are those of all
            processes together; what it raises ends them and is raised here.

    Raises:
        ServerError: a process ended without a result; the message is its reason. The others are ended: a load that
            lacks a part of its requests is not the one that was asked for.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_started(request, number)) for number in range(_processes(request))]
        messages: queue.Queue[tuple[_Worker, str | None]] = queue.Queue()
        for worker in workers:
            threading.Thread(target=_read, args=(worker, messages), daemon=True).start()
        while any(worker.tally is None for worker in workers):
            worker, line = messages.get()
            if line is None:
                if worker.tally is None:
                    raise ServerError(worker.why_ended())
                continue
            message = json.loads(line)
            if "tally" in message:
                worker.tally = Tally.model_validate(message["tally"])
                continue
            worker.said |= message
            _agree(workers, message)
            on_message(message | _together(workers))
        return load_of(merged([worker.tally for worker in workers if worker.tally]), request.offered)


def _processes(request: LoadRequest) -> int:
    """As many as were asked for, but none without a user."""
    offered = request.offered
    return min(request.processes, offered.users if isinstance(offered, ClosedLoop) else offered.max_in_flight)


@contextmanager
def _started(request: LoadRequest, number: int) -> Iterator[_Worker]:
    """A process of the generator, which is ended after the block if it runs still."""
    limits_s = {each.figure: each.limit / 1e3 for each in request.slo if each.is_latency}
    arguments = [
        *("--host", request.host),
        *("--implementation", request.implementation),
        *("--model-set", request.model_set),
        *("--dataset", request.dataset),
        *("--data-dir", str(request.data_dir)),
        *("--max-images", str(request.max_images)),
        *("--protocol", request.protocol.model_dump_json()),
        *("--offered", request.offered.model_dump_json()),
        *("--duration", str(request.duration_s)),
        *("--drain", str(request.drain_s)),
        *("--metrics-port", str(request.metrics_port)),
        *("--run", request.run, "--limits", json.dumps(limits_s)),
        *(("--answers", str(request.answers_dir)) if request.answers_dir else ()),
        *(("--requests", str(request.requests_dir)) if request.requests_dir else ()),
        *("--worker", str(number), "--workers", str(_processes(request)), "--await"),
    ]
    with tempfile.TemporaryFile("w+") as errors, GeneratorProcess(arguments, errors) as process:
        yield _Worker(process, errors)


def _read(worker: _Worker, messages: "queue.Queue[tuple[_Worker, str | None]]") -> None:
    with contextlib.suppress(ValueError):  # it was closed, because the load has ended
        for line in worker.process.stdout:
            messages.put((worker, line))
    messages.put((worker, None))


def _agree(workers: list[_Worker], message: dict[str, Any]) -> None:
    """Tell all processes the start when the last is ready, and the opening of the window when the last is warm."""
    if "ready" in message and all("ready" in worker.said for worker in workers):
        told_s = time.monotonic() + _START_IN_S
    elif "warm" in message and all("warm" in worker.said for worker in workers):
        told_s = max(worker.said["warm"] for worker in workers)
    else:
        return
    for worker in workers:
        worker.tell(told_s)


def _together(workers: list[_Worker]) -> dict[str, Any]:
    """The counts of a progress message, summed over all processes, and the CPU of the busiest."""
    counts = ("warm_users", "users", "requests", "failed", "dropped", "in_flight")
    together: dict[str, Any] = {count: sum(worker.said.get(count, 0) for worker in workers) for count in counts}
    together["late"] = summed(worker.said.get("late", {}) for worker in workers)
    return together | {"cpu_percent": max(worker.said.get("cpu_percent", 0.0) for worker in workers)}
