"""The sweep: implementations x loads, each implementation alone in a server; each run is on disk at once."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from detbench.api.client import ServerClient
from detbench.api.protocol import Native, Protocol
from detbench.api.schemas import ImplementationStatus
from detbench.atomic import write_atomically
from detbench.errors import ServerError
from detbench.host import CpuWatch
from detbench.load.request_log import merge_requests
from detbench.measure.cache_check import check_cache
from detbench.measure.device_watch import DeviceWatch
from detbench.measure.generators import LoadRequest
from detbench.measure.lengthening import Until, run_until
from detbench.measure.progress import SweepProgress
from detbench.measure.pushgateway import push_runs
from detbench.measure.resume import SCRATCH, resumed
from detbench.measure.selection import Deployment, left_out, replicas_of, select_implementations
from detbench.measure.server_stages import with_stages
from detbench.measure.servers import Server, Servers
from detbench.measure.session import Session, Subject, environment_of, info_of
from detbench.measure.under_load import audited, wrong_under_load
from detbench.quality.reference import Reference
from detbench.quality.replicas import other_weights
from detbench.report.photo import save_photo
from detbench.report.rows import duration
from detbench.results.loads import ClosedLoop, Load, Objective, OpenLoop
from detbench.results.quality import Comparison
from detbench.results.sweep import ImplementationInfo, Run, Settings, Sweep
from detbench.slo import missed
from detbench.statistics.ratios import interleaved
from detbench.verdict import judged


@dataclass(frozen=True)
class Plan:
    """What a sweep is to do; what `implementations` None is, `select_implementations` says.

    `offered` are the loads, each a run of every implementation, which `processes` send together. `replicas` are those
    of the clusters to start for each implementation; empty: what measures is no cluster, or the one that is there.
    """

    implementations: tuple[str, ...] | None
    replicas: tuple[int, ...]
    subject: Subject
    offered: tuple[ClosedLoop | OpenLoop, ...]
    processes: int
    repeats: int
    duration_s: float
    until: Until | None
    warmup_requests: int
    slo: tuple[Objective, ...]
    dataset_name: str
    data_dir: Path
    compare_outputs: bool
    keep_requests: bool
    metrics_port: int
    protocol: Protocol


class SweepRunner:
    """Runs one plan: `prepare`, then `run`.

    Args:
        plan: what to do.
        run_dir: receives results.json after every run.
        servers: where to measure.
        progress: what the person sees.
        broken_off: what an earlier process measured of the same plan; what it holds is not measured again.
    """

    def __init__(
        self,
        plan: Plan,
        run_dir: Path,
        servers: Servers,
        progress: SweepProgress,
        broken_off: Sweep | None = None,
    ) -> None:
        self._plan = plan
        self._broken_off = broken_off
        self._run_dir = run_dir
        self._servers = servers
        self._progress = progress
        self._session = Session(plan.subject, run_dir, servers, progress, self._note_problem)
        self._reference: Reference | None = None
        self._deployments: list[Deployment]
        self._sweep: Sweep

    def prepare(self) -> None:
        """Ask a server what there is to measure, and find or make the reference.

        Raises:
            ServerError: no server answers, or an implementation that was named cannot run.
            DatasetError: the server takes a photo for no image.
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
            new = _new_sweep(server.client, plan, implementations, replicas, self._servers.host)
            self._sweep = resumed(self._broken_off, new) if self._broken_off else new
            self._save()
            if plan.compare_outputs:
                with self._session.trouble("outputs cannot be compared", server):
                    self._reference = self._session.find_reference(server.client)

    def run(self) -> Sweep:
        """Measure everything; what ends badly is a problem in the result, and what follows is measured all the same."""
        loads = len(self._deployments) * len(self._plan.offered) * self._plan.repeats
        self._progress.expect(loads - len(self._sweep.runs), self._plan.duration_s)
        save_photo(self._plan.subject.dataset.photos[0].path, self._run_dir / "photo.jpg")
        for number, order in enumerate(interleaved(self._deployments, self._plan.repeats), start=1):
            for deployment in order:
                with self._session.trouble(f"{deployment} was not measured{self._in_round(number)}"):
                    self._measure(deployment, number)
        self._note_not_run()
        self._update(ended=_now())
        return self._sweep

    def _in_round(self, number: int) -> str:
        return f" in round {number}" if self._plan.repeats > 1 else ""

    def _measure(self, deployment: Deployment, number: int) -> None:
        plan, subject, status = self._plan, self._plan.subject, deployment.status
        left = [offered for offered in plan.offered if (number, str(deployment), str(offered)) not in self._made()]
        known = self._info(status.name)
        largest = deployment.replicas == max(plan.replicas, default=deployment.replicas)
        uncompared = self._reference is not None and largest and self._sweep.comparison(status.name) is None
        uncounted = number == 1 and known.kernels_per_request is None and isinstance(plan.protocol, Native)
        if not (left or uncompared or uncounted):
            return
        with self._session.alone(deployment) as (server, info):
            if known.load_s is None:
                self._keep(info)
                known = info
            self._note_other_weights(server, deployment)
            self._session.warm_up(server, deployment, plan.warmup_requests)
            if left and known.cache is None and self._reference is not None:
                self._progress.doing(f"{status.name}: looking for a cache")
                known = known.model_copy(update={"cache": check_cache(server.client, status.name, subject.model_set)})
                self._keep(known)
            for offered in left:
                with TemporaryDirectory(prefix=SCRATCH, dir=self._run_dir) as scratch:
                    run = self._add_run(server, deployment, offered, number, Path(scratch))
                if run.verdict == "failed" and not server.alive():
                    return
            if uncompared and self._reference is not None:
                comparison = self._session.compare(server.client, status, self._reference)
                self._update(comparisons=[*self._sweep.comparisons, comparison])
                self._note_worse_than_alone(comparison)
            if uncounted:
                self._keep(self._session.with_kernels(server, known))

    def _keep(self, info: ImplementationInfo) -> None:
        self._update(implementations=[info if i.name == info.name else i for i in self._sweep.implementations])

    def _info(self, name: str) -> ImplementationInfo:
        return next(info for info in self._sweep.implementations if info.name == name)

    def _add_run(
        self,
        server: Server,
        deployment: Deployment,
        offered: ClosedLoop | OpenLoop,
        number: int,
        scratch: Path,
    ) -> Run:
        plan, model_set = self._plan, self._plan.subject.model_set
        implementation = deployment.status.name
        what = f"{deployment}, {offered}{self._in_round(number)}"
        self._progress.doing(what)
        run = Run(
            round=number,
            implementation=implementation,
            model_set=model_set,
            replicas=deployment.replicas,
            offered=offered,
            verdict="failed",
            missed=missed(None, None, plan.slo),
            started=_now(),
        )
        answers_dir, requests_dir = scratch / "answers", scratch / "requests"
        answers_dir.mkdir()
        requests_dir.mkdir()
        request = LoadRequest(
            server.client.host,
            implementation,
            model_set,
            plan.dataset_name,
            plan.data_dir,
            len(plan.subject.dataset.photos),
            offered,
            plan.duration_s,
            plan.metrics_port,
            plan.processes,
            run=self._run_dir.name,
            slo=plan.slo,
            answers_dir=answers_dir if self._reference else None,
            requests_dir=requests_dir if plan.keep_requests else None,
            protocol=plan.protocol,
        )
        try:
            server.client.reset_peaks()
            silent = {each.replica: 0.0 for each in server.client.health().replicas or []}
            watch, device = CpuWatch(), DeviceWatch(server.client)
            before = server.client.statistics(implementation)

            def on_message(message: dict[str, object]) -> None:
                self._on_message(server, what, message)
                device.sample()
                server.client.sample_memory()

            load = run_until(
                request,
                plan.until,
                on_message,
                lambda line: self._progress.say(f"{what}: {line}"),
            )
            load = with_stages(load, before, server.client.statistics(implementation))
            load = load.model_copy(update={"replicas_rps": silent | load.replicas_rps})
            figures = {"load": load, "cpu": watch.shares(), "memory": server.memory(), "device": device.use()}
            run = judged(run.model_copy(update=figures), plan.slo)
        except ServerError as error:
            run = run.model_copy(update={"reason": server.reason(error)})
        run = run.model_copy(update={"ended": _now()})
        info = self._info(implementation)
        if self._reference is not None and run.measured:
            self._progress.doing(f"{what}: comparing the answers")
            run = audited(run, answers_dir, self._reference.outputs_of(plan.subject.dataset.photos), info)
        if plan.keep_requests and run.load is not None:
            place = plan.offered.index(offered) + 1
            name = f"{deployment.slug}-load{place}-round{number}.csv"
            merge_requests(requests_dir, self._run_dir / "requests" / name)
        self._update(runs=[*self._sweep.runs, run])
        push_runs([each for each in self._sweep.runs if each.implementation == implementation], plan.slo)
        if run.verdict == "failed":
            self._note_problem(f"{what}: {run.reason}")
        else:
            assert run.load is not None
            right = f", {run.audit} answers right" if run.audit else ""
            self._progress.say(f"{what}: {_in_short(run.load)}{right}")
        if problem := wrong_under_load(run, info.exact, self._sweep.comparison(implementation)):
            self._note_problem(f"{what}: {problem}")
        self._progress.run_done(plan.duration_s)
        return run

    def _on_message(self, server: Server, what: str, message: dict[str, object]) -> None:
        self._progress.within_run(what, message)
        if not server.alive():
            raise ServerError("the server ended in the middle of the run")

    def _note_problem(self, problem: str) -> None:
        self._progress.say(f"problem: {problem}")
        self._update(problems=[*self._sweep.problems, problem])

    def _made(self) -> set[tuple[int, str, str]]:
        """Which runs there are: round, deployment and load."""
        return {(run.round, run.deployment, str(run.offered)) for run in self._sweep.runs}

    def _note_other_weights(self, server: Server, deployment: Deployment) -> None:
        """Note each replica of a cluster whose weights are not those that the others, or the reference, have."""
        expected = self._reference.manifest.weights if self._reference else self._sweep.weights
        for line in other_weights(server.client.health().replicas or [], expected):
            if (problem := f"{deployment}: {line}") not in self._sweep.problems:
                self._note_problem(problem)

    def _note_worse_than_alone(self, alone: Comparison) -> None:
        """Note what the audits of earlier runs could not say of an implementation that does not claim to be exact."""
        if alone.exact:
            return
        for run in self._sweep.runs:
            if run.implementation == alone.implementation and (problem := wrong_under_load(run, False, alone)):
                self._note_problem(f"{run.deployment}, {run.offered}{self._in_round(run.round)}: {problem}")

    def _note_not_run(self) -> None:
        made = self._made()
        missing = [
            Run(
                round=number,
                implementation=deployment.status.name,
                model_set=self._plan.subject.model_set,
                replicas=deployment.replicas,
                offered=offered,
                verdict="not_run",
                missed=missed(None, None, self._plan.slo),
                reason="an earlier failure, see the problems",
            )
            for number in range(1, self._plan.repeats + 1)
            for deployment in self._deployments
            for offered in self._plan.offered
            if (number, str(deployment), str(offered)) not in made
        ]
        self._update(runs=[*self._sweep.runs, *missing])

    def _update(self, **fields: object) -> None:
        self._sweep = self._sweep.model_copy(update=fields)
        self._save()

    def _save(self) -> None:
        write_atomically(self._run_dir / "results.json", self._sweep.model_dump_json(indent=1))


def _new_sweep(
    client: ServerClient,
    plan: Plan,
    implementations: list[ImplementationStatus],
    replicas: tuple[int | None, ...],
    host: str | None,
) -> Sweep:
    health = client.health()
    return Sweep(
        started=_now(),
        settings=Settings(
            implementations=[status.name for status in implementations],
            model_set=plan.subject.model_set,
            offered=list(plan.offered),
            replicas=[each for each in replicas if each is not None],
            processes=plan.processes,
            repeats=plan.repeats,
            duration_s=plan.duration_s,
            until=plan.until.percentile if plan.until else None,
            max_duration_s=plan.until.max_duration_s if plan.until else None,
            warmup_requests=plan.warmup_requests,
            slo=list(plan.slo),
            dataset=plan.dataset_name,
            images=len(plan.subject.dataset.photos),
            compare_outputs=plan.compare_outputs,
            keep_requests=plan.keep_requests,
            concurrency=plan.subject.concurrency,
            max_map_loss=plan.subject.max_map_loss,
            host=host,
            protocol=plan.protocol,
            server=health.settings,
        ),
        environment=environment_of(health),
        weights=client.model_set(plan.subject.model_set).models,
        implementations=[info_of(status) for status in implementations],
    )


def _in_short(load: Load) -> str:
    """A finished run in a line."""
    offered = "" if load.offered_rps is None else f" of {load.offered_rps:.3g}"
    latency = f", p50 {duration(load.latency.p50.value_ms)} ms" if load.latency else ""
    service = f", service p50 {duration(load.service.p50.value_ms)} ms" if load.service and offered else ""
    counts = {"failed": load.failed, "dropped": load.dropped}
    amiss = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
    return f"{load.rps:.3g}{offered} requests/s{latency}{service}{amiss}"


def _now() -> datetime:
    return datetime.now(UTC)
