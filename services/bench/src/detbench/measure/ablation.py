"""The ablation: what each technique adds in speed, memory and error; every cell on disk at once.

Its rows are the server's: every implementation that names a technique, in the server's order.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import numpy as np

from detbench.api.client import ServerClient
from detbench.api.schemas import ImplementationStatus
from detbench.atomic import write_atomically
from detbench.errors import ServerError
from detbench.host import CpuShares, CpuWatch
from detbench.measure.attribution import attributed
from detbench.measure.kept import KeptServers
from detbench.measure.progress import SweepProgress
from detbench.measure.servers import Server, Servers
from detbench.measure.session import Session, Subject, environment_of
from detbench.quality.reference import Reference
from detbench.results.ablation import Ablation, AblationSettings, Step, Timing
from detbench.results.sweep import ImplementationInfo, Memory
from detbench.statistics.ratios import interleaved

CELL_S = 10.0
"""Seconds that a cell is measured, in all rounds together, unless the plan says otherwise."""
# Batches of a cell, in all rounds together.
_FEWEST, _MOST = 12, 400
# Where servers stay, so that a round more costs no start. A host that shares its cores between machines makes the same
# batch take 180 ms in one second and 240 in another, whoever's it is: with six rounds two medians of a row were up to
# 23 % apart, because what is measured together is fast or slow together.
_KEPT_ROUNDS, _ROUNDS = 24, 2
# Servers that stay are started anew so often, as rounds allow: a process is fast or slow as long as it lives, too. Of
# the same networks a second one took 0.85 of the time, while the quartiles of each were 4 % apart.
_PROCESSES = 6


@dataclass(frozen=True)
class AblationPlan:
    """What an ablation is to do.

    `implementations` are the rows to measure, in this order; None is all. `reverse` turns the order round. `repeats`
    are rounds; None is 24 where the servers of all rows stay, else 2. `batches` are timed of each cell in each round;
    None is as many as `cell_s` seconds hold in all rounds together.
    """

    subject: Subject
    implementations: tuple[str, ...] | None
    reverse: bool
    batch_sizes: tuple[int, ...]
    repeats: int | None
    batches: int | None
    cell_s: float = CELL_S


class AblationRunner:
    """Runs one plan: `prepare`, then `run`.

    Args:
        plan: what to do.
        run_dir: receives ablation.json after every cell.
        servers: where to measure.
        progress: what the person sees.
    """

    def __init__(self, plan: AblationPlan, run_dir: Path, servers: Servers, progress: SweepProgress) -> None:
        self._plan = plan
        self._run_dir = run_dir
        self._servers = servers
        self._progress = progress
        self._session = Session(plan.subject, run_dir, servers, progress, self._note_problem)
        self._reference: Reference | None = None
        self._rows: list[ImplementationStatus]
        self._labels: dict[str, str]
        self._repeats: int
        self._keeps: bool
        self._warm: set[tuple[int, int]] = set()  # processes and batch sizes
        self._batches: dict[tuple[str, int], int] = {}  # in a round, by row and batch size
        self._ablation: Ablation

    def prepare(self) -> None:
        """Ask a server for the rows, and find or make the reference.

        Raises:
            ServerError: no server answers, a name is no row, or no row can run.
            DatasetError: the server takes a photo for no image.
        """
        plan = self._plan
        with self._servers.empty() as server:
            offered = server.client.implementations()
            self._rows, left_out = choose_rows(offered, plan.implementations, plan.subject.model_set)
            if plan.reverse:
                self._rows.reverse()
            by_name = {status.name: status for status in offered if status.technique}
            self._labels = {
                row.name: label_of(row.name, by_name, [each.name for each in self._rows]) for row in self._rows
            }
            for name, reason in left_out.items():
                self._progress.say(f"{name} is left out: {reason}")
            health = server.client.health()
            self._keeps = server.process is not None and health.device == "cpu"
            self._repeats = plan.repeats or (_KEPT_ROUNDS if self._keeps else _ROUNDS)
            self._ablation = _new_ablation(
                server.client, plan, self._repeats, offered, self._rows, left_out, self._servers.host
            )
            self._save()
            with self._session.trouble("outputs cannot be compared", server):
                self._reference = self._session.find_reference(server.client)

    def run(self) -> Ablation:
        """Measure everything; what ends badly is a problem in the result, and what follows is measured all the same."""
        plan = self._plan
        self._progress.expect(len(self._rows) * len(plan.batch_sizes) * self._repeats, plan.cell_s / self._repeats)
        with KeptServers(self._session, self._keeps) as servers:
            for number, order in enumerate(interleaved(self._rows, self._repeats), start=1):
                if (number - 1) % math.ceil(self._repeats / _PROCESSES) == 0:
                    servers.end_all()
                for status in order:
                    if status.name in self._ablation.left_out:
                        continue
                    with (
                        self._session.trouble(f"{status.name} was not measured"),
                        self._left_out_where_refused(status.name),
                    ):
                        self._measure(servers, status, number)
                if self._keeps:
                    self._progress.say(f"round {number} of {self._repeats} is done")
        self._update(ended=_now())
        return self._ablation

    @contextmanager
    def _left_out_where_refused(self, name: str) -> Iterator[None]:
        """Leave out a row that the server refuses (409), as it does where something that it needs is absent."""
        try:
            yield
        except ServerError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            self._progress.say(f"{name} is left out: {error}")
            self._update(left_out=self._ablation.left_out | {name: str(error)})

    def _measure(self, servers: KeptServers, status: ImplementationStatus, number: int) -> None:
        server, info = servers.of(status)
        try:
            self._measure_in(server, status, info, number)
        except ServerError as error:
            raise ServerError(server.reason(error), error.status) from error
        finally:
            servers.release(status.name)

    def _measure_in(self, server: Server, status: ImplementationStatus, info: ImplementationInfo, number: int) -> None:
        """Time one round of a row. The first compares its outputs too, the last counts its kernels."""
        step = next((each for each in self._ablation.steps if each.implementation.name == status.name), None)
        step = step or Step(label=self._labels[status.name], implementation=info)
        self._keep(step)
        for batch_size in self._plan.batch_sizes:
            what = f"{status.name}, batches of {batch_size}"
            self._progress.doing(f"{what}, round {number} of {self._repeats}")
            with self._session.trouble(what, server):
                watch = CpuWatch()
                latencies_ms, memory = self._time(server, status.name, batch_size)
                timing = _with_round(step.timing(batch_size), batch_size, latencies_ms, memory, watch.shares())
                others = [each for each in step.timings if each.batch_size != batch_size]
                timings = sorted([*others, timing], key=lambda each: each.batch_size)
                step = step.model_copy(update={"timings": timings})
                self._keep(step)
                if not self._keeps or number == self._repeats:
                    self._progress.say(f"{what}: {timing.median_ms:.1f} ms")
            if not server.alive():
                return
            self._progress.run_done(self._plan.cell_s / self._repeats)
        if step.comparison is None and self._reference is not None:
            comparison = self._session.compare(server.client, status, self._reference)
            step = step.model_copy(update={"comparison": comparison})
            self._keep(step)
        if number == self._repeats:
            known = step.implementation
            self._keep(step.model_copy(update={"implementation": self._session.with_kernels(server, known)}))

    def _time(self, server: Server, name: str, batch_size: int) -> tuple[list[float], Memory]:
        """Latencies of one round, ms, and the memory that it took."""
        subject, plan = self._plan.subject, self._plan
        photo = subject.dataset.photos[0]
        image = photo.read()

        def timed(batches: int) -> list[float]:
            return server.client.time(
                name, subject.model_set, image, photo.content_type, batch_size=batch_size, repeats=batches
            )

        # The peak is of batches alone: what the first of a new size builds or captures is not in it.
        key = (server.process.pid, batch_size) if server.process else None
        if key not in self._warm:
            first_ms = timed(3)
            server.client.reset_peaks()
            within = batches_within(plan.cell_s / self._repeats, first_ms, math.ceil(_MOST / self._repeats))
            self._batches[name, batch_size] = plan.batches or max(math.ceil(_FEWEST / self._repeats), within)
        if key is not None:
            self._warm.add(key)
        return timed(self._batches[name, batch_size]), server.memory()

    def _keep(self, step: Step) -> None:
        """Put `step` in its row, in place of what that had; rows are in the server's order."""
        steps = {each.implementation.name: each for each in self._ablation.steps} | {step.implementation.name: step}
        adds_to = self._ablation.adds_to
        in_order = [steps[name] for name in adds_to if name in steps]
        self._update(steps=attributed(in_order, adds_to, self._plan.batch_sizes))

    def _note_problem(self, problem: str) -> None:
        self._progress.say(f"problem: {problem}")
        self._update(problems=[*self._ablation.problems, problem])

    def _update(self, **fields: object) -> None:
        self._ablation = self._ablation.model_copy(update=fields)
        self._save()

    def _save(self) -> None:
        write_atomically(self._run_dir / "ablation.json", self._ablation.model_dump_json(indent=1))


def choose_rows(
    offered: Sequence[ImplementationStatus], names: Sequence[str] | None, model_set: str
) -> tuple[list[ImplementationStatus], dict[str, str]]:
    """The rows that can run with `model_set`, in the order of `names`, and why the others cannot.

    Args:
        offered: what the server has; a row of the ablation is what names a technique.
        names: the rows to choose; None is all, in the server's order.

    Raises:
        ServerError: a name that is no row, or no row is left.
    """
    rows = {status.name: status for status in offered if status.technique}
    for name in names or ():
        if name not in rows:
            raise ServerError(f"{name!r} is no row of the ablation; those are {', '.join(rows)}")
    reasons = {name: rows[name].why_not(model_set) for name in dict.fromkeys(names or rows)}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    chosen = [rows[name] for name in reasons if name not in left_out]
    if not chosen:
        raise ServerError(f"no row can run: {'; '.join(f'{name}: {reason}' for name, reason in left_out.items())}")
    return chosen, left_out


def label_of(name: str, offered: Mapping[str, ImplementationStatus], measured: Collection[str]) -> str:
    """What a row is called: the technique that it is; or those that it adds to the nearest row that is measured, too.

    Args:
        name: of the row.
        offered: all rows of the server, by name.
        measured: the names of those that are measured.
    """
    status = offered[name]
    if status.adds_to is None:
        return str(status.technique)
    techniques: list[str] = []
    for _ in offered:  # a server whose rows add to each other in a circle ends here, too
        techniques.insert(0, str(status.technique))
        parent = offered.get(str(status.adds_to))
        if parent is None or parent.name in measured or parent.adds_to is None:
            break
        status = parent
    return "".join(f"+ {technique} " for technique in techniques).rstrip()


def _with_round(
    known: Timing | None, batch_size: int, latencies_ms: list[float], memory: Memory, cpu: CpuShares | None
) -> Timing:
    """A timing with one round more; its memory and CPU shares are of the round with the higher peak, or steal."""
    shares = [each for each in (cpu, known and known.cpu) if each]
    rounds_ms = [*(known.rounds_ms if known else []), latencies_ms]
    memories = [memory, *([known.memory] if known else [])]
    lower, median, upper = np.percentile(np.concatenate(rounds_ms), (25, 50, 75)).tolist()
    return Timing(
        batch_size=batch_size,
        rounds_ms=rounds_ms,
        median_ms=median,
        lower_quartile_ms=lower,
        upper_quartile_ms=upper,
        images_per_s=1e3 * batch_size / median,
        memory=max(memories, key=lambda each: each.peak_mb or 0.0),
        cpu=max(shares, key=lambda each: each.steal, default=None),
    )


def batches_within(seconds: float, latencies_ms: Sequence[float], most: int) -> int:
    """How many batches like those measured fit into `seconds`, and no more than `most`."""
    return min(most, int(1e3 * seconds / max(float(np.median(latencies_ms)), 1e-3)))


def _new_ablation(
    client: ServerClient,
    plan: AblationPlan,
    repeats: int,
    offered: Sequence[ImplementationStatus],
    rows: Sequence[ImplementationStatus],
    left_out: dict[str, str],
    host: str | None,
) -> Ablation:
    health, subject = client.health(), plan.subject
    return Ablation(
        started=_now(),
        settings=AblationSettings(
            model_set=subject.model_set,
            batch_sizes=list(plan.batch_sizes),
            repeats=repeats,
            batches=plan.batches,
            order=[status.name for status in rows],
            dataset=subject.dataset.name,
            images=len(subject.dataset.photos),
            concurrency=subject.concurrency,
            host=host,
            server=health.settings,
        ),
        environment=environment_of(health),
        weights=client.model_set(subject.model_set).models,
        adds_to={status.name: status.adds_to for status in offered},
        left_out=left_out,
    )


def _now() -> datetime:
    return datetime.now(UTC)
