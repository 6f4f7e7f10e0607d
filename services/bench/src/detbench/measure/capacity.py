"""Capacity: the highest rate at which limits hold, of each implementation alone; each probe is on disk at once."""

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from detbench.api.client import ServerClient
from detbench.atomic import write_atomically
from detbench.errors import ServerError
from detbench.host import CpuWatch
from detbench.load.schedules import Schedule, schedule_of
from detbench.measure.capacity_search import Ask, Bounds, Tried, bracket, next_step
from detbench.measure.generators import LoadRequest, run_load
from detbench.measure.probe_outcome import hopeless, outcome_of, requests_needed
from detbench.measure.progress import SweepProgress
from detbench.measure.resume import check_circumstances
from detbench.measure.selection import Deployment, left_out, replicas_of, select_implementations
from detbench.measure.servers import Server, Servers
from detbench.measure.session import Session, Subject, environment_of, info_of
from detbench.report.capacity import sentence_of
from detbench.results.capacity import Capacities, Capacity, CapacitySettings, Outcome, Probe
from detbench.results.loads import ClosedLoop, Objective, OpenLoop
from detbench.results.sweep import Run
from detbench.verdict import judged, stolen

# Their throughput is the first guess. Few, so that one who waits for all others knows soon what a slow server can do.
_USERS = 4
_GUESS_S = 4.0
# Of that throughput, the first rate: low enough to pass mostly, and near enough to find one that fails in two steps.
_FIRST_SHARE = 0.7
# Answers are waited for so many times as long as the longest limit, and as long as this at least.
_DRAIN_LIMITS = 4.0
_DRAIN_S = 30.0


@dataclass(frozen=True)
class CapacityPlan:
    """What a search for capacities is to do; what `implementations` None is, `select_implementations` says.

    `replicas` are those of the clusters to start for each implementation; empty: what measures is no cluster, or the
    one that is there. The other fields are those of `CapacitySettings`.
    """

    implementations: tuple[str, ...] | None
    replicas: tuple[int, ...]
    subject: Subject
    slo: tuple[Objective, ...]
    arrivals: str | None
    burstiness: float | None
    seed: int
    max_in_flight: int
    max_rate: float | None
    max_duration_s: float
    precision: float
    processes: int
    warmup_requests: int
    dataset_name: str
    data_dir: Path

    def offered(self, rate: float, number: int) -> OpenLoop:
        """The load of probe number `number`, from 1: its seed is its own."""
        seed = self.seed + number
        return OpenLoop(
            schedule=str(self.schedule(rate, seed)),
            rate=rate,
            arrivals=self.arrivals,
            burstiness=self.burstiness,
            seed=seed,
            max_in_flight=self.max_in_flight,
        )

    def schedule(self, rate: float, seed: int) -> Schedule:
        """The arrivals of a probe."""
        return schedule_of(rate, self.arrivals, self.burstiness, seed=seed)


class _EndedEarly(Exception):
    """A probe was ended before its time, because its outcome is certain."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class CapacityRunner:
    """Runs one plan: `prepare`, then `run`.

    Args:
        plan: what to do.
        run_dir: receives capacity.json after every probe.
        servers: where to measure.
        progress: what the person sees.
        broken_off: what an earlier process measured of the same plan; its probes are not made again.
    """

    def __init__(
        self,
        plan: CapacityPlan,
        run_dir: Path,
        servers: Servers,
        progress: SweepProgress,
        broken_off: Capacities | None = None,
    ) -> None:
        self._plan = plan
        self._broken_off = broken_off
        self._run_dir = run_dir
        self._servers = servers
        self._progress = progress
        self._session = Session(plan.subject, run_dir, servers, progress, self._note_problem)
        self._deployments: list[Deployment]
        self._capacities: Capacities

    def prepare(self) -> None:
        """Ask a server what there is to measure.

        Raises:
            ServerError: no server answers, or an implementation that was named cannot run.
            DetbenchError: what was broken off was measured on another machine, or with other software or weights.
        """
        plan, model_set = self._plan, self._plan.subject.model_set
        with self._servers.empty() as server:
            offered = server.client.implementations()
            implementations = select_implementations(offered, plan.implementations, model_set)
            if line := left_out(offered, plan.implementations, model_set):
                self._progress.say(line)
            replicas = replicas_of(server.client, plan.replicas)
            self._deployments = [Deployment(status, each) for status in implementations for each in replicas]
            self._capacities = _new_capacities(server.client, plan, self._deployments, self._servers.host)
        if self._broken_off:
            check_circumstances(self._broken_off, self._capacities)
            self._capacities = self._broken_off
        self._save()

    def run(self) -> Capacities:
        """Search for every capacity; what ends badly is a problem in the result, and what follows is measured still."""
        left = [each for each in self._deployments if self._found(each).ended_by is None]
        self._progress.expect(len(left), self._plan.max_duration_s)
        for deployment in left:
            with self._session.trouble(f"the capacity of {deployment} was not found"):
                self._search(deployment)
            if self._found(deployment).ended_by is None:
                self._keep(deployment, ended_by="failure")
        self._update(ended=_now())
        return self._capacities

    def _search(self, deployment: Deployment) -> None:
        plan = self._plan
        with self._session.alone(deployment) as (server, info):
            if self._found(deployment).implementation.load_s is None:
                self._keep(deployment, implementation=info)
            self._session.warm_up(server, deployment, plan.warmup_requests)
            bounds = self._bounds(self._found(deployment).closed_loop or self._closed_loop(server, deployment))
            while isinstance(step := next_step(_tried(self._found(deployment)), bounds), Ask):
                probe = self._probe(server, deployment, step)
                self._add(deployment, probe)
                self._progress.run_done(step.duration_s)
                if probe.run.load is None and not _answers(server):
                    self._note_problem(f"{deployment}, {probe.run.offered}: {probe.reason}")
                    return
            self._keep(deployment, ended_by=step)
        self._progress.say(sentence_of(self._found(deployment), plan.slo))

    def _bounds(self, closed_loop: Run) -> Bounds:
        plan = self._plan
        rps = closed_loop.load.rps if closed_loop.load else 0.0
        return Bounds(
            start=_FIRST_SHARE * (rps or 1 / _GUESS_S),
            requests=requests_needed(plan.slo),
            max_duration_s=plan.max_duration_s,
            max_rate=math.inf if plan.max_rate is None else plan.max_rate,
            precision=plan.precision,
        )

    def _closed_loop(self, server: Server, deployment: Deployment) -> Run:
        """What a few users get, of each replica, who send one request after the other."""
        offered = ClosedLoop(users=_USERS * (deployment.replicas or 1))
        what = f"{deployment}, {offered}"
        self._progress.doing(what)
        run = self._run_of(deployment, offered)
        load = run_load(self._request(server, run, _GUESS_S), lambda message: self._watch(server, what, message))
        run = judged(run.model_copy(update={"load": load, "ended": _now()}))
        self._keep(deployment, closed_loop=run)
        self._progress.say(f"{what}: {load.rps:.3g} requests/s, the first guess")
        return run

    def _add(self, deployment: Deployment, probe: Probe) -> None:
        capacity = self._found(deployment)
        capacity = capacity.model_copy(update={"probes": [*capacity.probes, probe]})
        last_passed, first_failed = bracket(_tried(capacity))
        self._keep(deployment, probes=capacity.probes, last_passed=last_passed, first_failed=first_failed)
        self._progress.say(_in_short(probe))

    def _probe(self, server: Server, deployment: Deployment, step: Ask) -> Probe:
        plan = self._plan
        offered = plan.offered(step.rate, len(self._found(deployment).probes) + 1)
        what = f"{deployment}, {offered}{', confirming' if step.confirms else ''}"
        self._progress.doing(what)
        requests = len(plan.schedule(step.rate, offered.seed).between(0, step.duration_s))
        run = self._run_of(deployment, offered)
        began_s = time.monotonic()
        watch = CpuWatch()

        def on_message(message: dict[str, Any]) -> None:
            self._watch(server, what, message)
            if certain := hopeless(message, plan.slo, requests):
                raise _EndedEarly(*certain)

        try:
            server.client.reset_peaks()
            load = run_load(self._request(server, run, step.duration_s), on_message)
            figures = {"load": load, "cpu": watch.shares(), "memory": server.memory(), "ended": _now()}
            run = judged(run.model_copy(update=figures), plan.slo)
            outcome, reason = outcome_of(run, plan.slo)
        except _EndedEarly as early:
            outcome, reason = early.outcome, str(early)
            for doubt in stolen(watch.shares()):
                outcome, reason = "unusable", f"{reason}, but {doubt.message}"
            run = run.model_copy(update={"reason": reason, "cpu": watch.shares(), "ended": _now()})
            self._wait_until_idle(server, deployment)
        except ServerError as error:
            # A generator that ended says nothing of a server that still answers.
            outcome, reason = "unusable" if _answers(server) else "failed", server.reason(error)
            run = run.model_copy(update={"reason": reason, "ended": _now()})
        return Probe(
            run=run,
            duration_s=step.duration_s,
            confirms=step.confirms,
            outcome=outcome,
            reason=reason,
            took_s=time.monotonic() - began_s,
        )

    def _wait_until_idle(self, server: Server, deployment: Deployment) -> None:
        """Send one request, which is answered when those before it are, so that the next probe finds no queue."""
        try:
            self._session.warm_up(server, deployment, 1)
        except ServerError as error:
            self._progress.say(f"{deployment}: after an overload: {server.reason(error)}")

    def _watch(self, server: Server, what: str, message: dict[str, Any]) -> None:
        self._progress.within_run(what, message)
        if not server.alive():
            raise ServerError("the server ended in the middle of the run")

    def _request(self, server: Server, run: Run, duration_s: float) -> LoadRequest:
        plan = self._plan
        longest_s = max((each.limit / 1e3 for each in plan.slo if each.is_latency), default=0.0)
        return LoadRequest(
            server.client.host,
            run.implementation,
            run.model_set,
            plan.dataset_name,
            plan.data_dir,
            len(plan.subject.dataset.photos),
            run.offered,
            duration_s,
            processes=plan.processes,
            drain_s=max(_DRAIN_S, _DRAIN_LIMITS * longest_s),
            run=self._run_dir.name,
            slo=plan.slo,
        )

    def _run_of(self, deployment: Deployment, offered: ClosedLoop | OpenLoop) -> Run:
        return Run(
            implementation=deployment.status.name,
            model_set=self._plan.subject.model_set,
            replicas=deployment.replicas,
            offered=offered,
            verdict="failed",
            started=_now(),
        )

    def _note_problem(self, problem: str) -> None:
        self._progress.say(f"problem: {problem}")
        self._update(problems=[*self._capacities.problems, problem])

    def _found(self, deployment: Deployment) -> Capacity:
        """What the search of a deployment has found so far."""
        return next(each for each in self._capacities.capacities if each.deployment == str(deployment))

    def _keep(self, deployment: Deployment, **fields: object) -> None:
        """Keep what is new of the search of one deployment."""
        known = self._found(deployment)
        self._update(
            capacities=[
                each.model_copy(update=fields) if each is known else each for each in self._capacities.capacities
            ]
        )

    def _update(self, **fields: object) -> None:
        self._capacities = self._capacities.model_copy(update=fields)
        self._save()

    def _save(self) -> None:
        write_atomically(self._run_dir / "capacity.json", self._capacities.model_dump_json(indent=1))


def _tried(capacity: Capacity) -> list[Tried]:
    return [Tried(each.rate, each.outcome, each.confirms, each.took_s) for each in capacity.probes]


def _answers(server: Server) -> bool:
    """Whether the server is there still, ours or not."""
    try:
        server.client.health()
    except ServerError:
        return False
    return server.alive()


def _new_capacities(
    client: ServerClient, plan: CapacityPlan, deployments: list[Deployment], host: str | None
) -> Capacities:
    health = client.health()
    return Capacities(
        started=_now(),
        settings=CapacitySettings(
            implementations=list(dict.fromkeys(each.status.name for each in deployments)),
            model_set=plan.subject.model_set,
            replicas=list(dict.fromkeys(each.replicas for each in deployments if each.replicas is not None)),
            slo=list(plan.slo),
            arrivals=plan.arrivals,
            burstiness=plan.burstiness,
            seed=plan.seed,
            max_in_flight=plan.max_in_flight,
            max_rate=plan.max_rate,
            max_duration_s=plan.max_duration_s,
            precision=plan.precision,
            processes=plan.processes,
            warmup_requests=plan.warmup_requests,
            dataset=plan.dataset_name,
            images=len(plan.subject.dataset.photos),
            host=host,
            server=health.settings,
        ),
        environment=environment_of(health),
        weights=client.model_set(plan.subject.model_set).models,
        capacities=[Capacity(implementation=info_of(each.status), replicas=each.replicas) for each in deployments],
    )


def _in_short(probe: Probe) -> str:
    """A probe that was made, in a line."""
    kind = ", confirming" if probe.confirms else ""
    reason = f": {probe.reason}" if probe.reason else ""
    return f"{probe.run.deployment}, {probe.run.offered}{kind}: {probe.outcome}{reason}"


def _now() -> datetime:
    return datetime.now(UTC)
