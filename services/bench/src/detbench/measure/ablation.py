"""The ablation: what each technique adds to those before it in speed, memory and error; every row on disk at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from detbench.ablation_results import Ablation, AblationSettings, Step, Timing
from detbench.atomic import write_atomically
from detbench.client import ServerClient
from detbench.errors import ServerError
from detbench.measure.attribution import attributed
from detbench.measure.progress import SweepProgress
from detbench.measure.server_process import ServerProcess
from detbench.measure.session import Session, Subject, environment_of, info_of, vram_of
from detbench.quality.reference import Reference
from detbench.schemas import ImplementationStatus

# The chain: each on top of those before it, but for `fused`, which need not build on `compiled`.
CHAIN = {
    "baseline": "sequential eager",
    "postprocess": "+ batched post-processing",
    "channels-last": "+ channels_last",
    "folded": "+ batch norm folded",
    "compiled": "+ compile",
    "grouped": "+ stacking",
    "fused": "+ fused",
    "fused-bf16": "+ bf16",
}
# What `fused` adds depends on the device, so its label is the server's.
_LABELLED_BY_SERVER = "fused"

CELL_S = 10.0
_FEWEST = 5
_MOST = 200


@dataclass(frozen=True)
class AblationPlan:
    """What an ablation is to do: `implementations` None is the whole chain, `repeats` None as many as 10 s hold."""

    subject: Subject
    implementations: tuple[str, ...] | None
    batch_sizes: tuple[int, ...]
    repeats: int | None


class AblationRunner:
    """Runs one plan against one server.

    Args:
        plan: what to do.
        run_dir: receives ablation.json after every cell.
        host: base URL of the server.
        process: the server, where it is our own and its lifetime our business.
        progress: what the person sees.

    Raises:
        ServerError: at the start, when the server does not answer, a name is no step, or no step can run.
    """

    def __init__(
        self, plan: AblationPlan, run_dir: Path, host: str, process: ServerProcess | None, progress: SweepProgress
    ) -> None:
        self._plan = plan
        self._run_dir = run_dir
        self._progress = progress
        self._session = Session(plan.subject, run_dir, host, process, progress, self._note_problem)
        with ServerClient(host) as client:
            self._steps, left_out = choose_steps(client.implementations(), plan.implementations, plan.subject.model_set)
            self._ablation = _new_ablation(client, plan, left_out)

    def run(self) -> Ablation:
        """Measure everything; what ends badly is a problem in the result, and what follows is measured all the same."""
        self._save()
        for name, reason in self._ablation.left_out.items():
            self._progress.say(f"{name} is left out: {reason}")
        self._progress.expect(len(self._steps) * len(self._plan.batch_sizes), CELL_S)
        reference: Reference | None = None
        with ServerClient(self._session.host) as client, self._session.trouble("outputs cannot be compared"):
            reference = self._session.find_reference(client)
        for status in self._steps:
            if self._session.revive():
                with self._session.trouble(f"{status.name} was not measured"):
                    self._measure(status, reference)
        self._update(ended=_now())
        return self._ablation

    def _measure(self, status: ImplementationStatus, reference: Reference | None) -> None:
        subject = self._plan.subject
        with ServerClient(self._session.host) as client:
            loaded = self._session.load_alone(client, status)
            step = Step(label=label_of(status), implementation=info_of(status, loaded))
            self._keep(step)
            for batch_size in self._plan.batch_sizes:
                what = f"{status.name}, batches of {batch_size}"
                self._progress.doing(what)
                with self._session.trouble(what):
                    timing = self._time(client, status.name, batch_size)
                    step = step.model_copy(update={"timings": [*step.timings, timing]})
                    self._keep(step)
                    self._progress.say(f"{what}: {timing.median_ms:.1f} ms, {timing.images_per_s:.3g} images/s")
                if not self._session.alive():
                    return
                self._progress.run_done(CELL_S)
            if reference is not None:
                comparison = self._session.compare(client, status, reference)
                step = step.model_copy(update={"comparison": comparison})
                self._keep(step)
            client.unload(status.name, subject.model_set)
            info = self._session.with_kernels(client, step.implementation)
            self._keep(step.model_copy(update={"implementation": info}))

    def _time(self, client: ServerClient, name: str, batch_size: int) -> Timing:
        subject = self._plan.subject
        photo = subject.dataset.photos[0]
        image = photo.read()

        def timed(repeats: int) -> list[float]:
            return client.time(
                name, subject.model_set, image, photo.content_type, batch_size=batch_size, repeats=repeats
            )

        client.reset_vram_peak()
        latencies_ms = timed(self._plan.repeats or _FEWEST)
        if self._plan.repeats is None and (more := repeats_within(CELL_S, latencies_ms) - _FEWEST) > 0:
            latencies_ms += timed(more)
        lower, median, upper = np.percentile(latencies_ms, (25, 50, 75)).tolist()
        return Timing(
            batch_size=batch_size,
            latencies_ms=latencies_ms,
            median_ms=median,
            lower_quartile_ms=lower,
            upper_quartile_ms=upper,
            images_per_s=1e3 * batch_size / median,
            vram=vram_of(client),
        )

    def _keep(self, step: Step) -> None:
        """Put `step` in its row, which is the last one where it has one already."""
        rows = [row for row in self._ablation.steps if row.implementation.name != step.implementation.name]
        self._update(steps=attributed([*rows, step], self._plan.batch_sizes))

    def _note_problem(self, problem: str) -> None:
        self._progress.say(f"problem: {problem}")
        self._update(problems=[*self._ablation.problems, problem])

    def _update(self, **fields: object) -> None:
        self._ablation = self._ablation.model_copy(update=fields)
        self._save()

    def _save(self) -> None:
        write_atomically(self._run_dir / "ablation.json", self._ablation.model_dump_json(indent=1))


def choose_steps(
    offered: Sequence[ImplementationStatus], names: Sequence[str] | None, model_set: str
) -> tuple[list[ImplementationStatus], dict[str, str]]:
    """The steps that can run with `model_set`, in the chain's order, and why the others of the chain cannot.

    Args:
        names: the steps to choose from; None is the whole chain.

    Raises:
        ServerError: a name that is no step, or no step is left.
    """
    for name in names or ():
        if name not in CHAIN:
            raise ServerError(f"{name!r} is no step of the ablation; those are {', '.join(CHAIN)}")
    known = {status.name: status for status in offered}
    steps, left_out = [], {}
    for name in CHAIN:
        if names is not None and name not in names:
            continue
        reason = known[name].why_not(model_set) if name in known else "the server does not have it"
        if reason is None:
            steps.append(known[name])
        else:
            left_out[name] = reason
    if not steps:
        raise ServerError(f"no step can run: {'; '.join(f'{name}: {reason}' for name, reason in left_out.items())}")
    return steps, left_out


def label_of(status: ImplementationStatus) -> str:
    """What the row of a step is called."""
    if status.name == _LABELLED_BY_SERVER and status.technique:
        return f"+ {status.technique}"
    return CHAIN[status.name]


def repeats_within(seconds: float, latencies_ms: Sequence[float]) -> int:
    """How many batches like those measured fit into `seconds`: 5 at least, 200 at most."""
    return int(np.clip(1e3 * seconds / max(float(np.median(latencies_ms)), 1e-3), _FEWEST, _MOST))


def _new_ablation(client: ServerClient, plan: AblationPlan, left_out: dict[str, str]) -> Ablation:
    health, subject = client.health(), plan.subject
    return Ablation(
        started=_now(),
        settings=AblationSettings(
            model_set=subject.model_set,
            batch_sizes=list(plan.batch_sizes),
            repeats=plan.repeats,
            dataset=subject.dataset.name,
            images=len(subject.dataset.photos),
            concurrency=subject.concurrency,
            host=client.host,
            server=health.settings,
        ),
        environment=environment_of(health),
        weights=client.model_set(subject.model_set).models,
        left_out=left_out,
    )


def _now() -> datetime:
    return datetime.now(UTC)
