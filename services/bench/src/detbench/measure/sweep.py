"""The sweep: implementations x numbers of users, one implementation loaded at a time, every result on disk at once."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from detbench.atomic import write_atomically
from detbench.client import ServerClient
from detbench.errors import DetbenchError, ServerError
from detbench.load.measure import LoadRequest, run_driver, warnings_of
from detbench.measure.progress import SweepProgress
from detbench.measure.pushgateway import push_runs
from detbench.measure.selection import left_out, select_implementations
from detbench.measure.server_process import ServerProcess
from detbench.measure.session import Session, Subject, environment_of, info_of, unload_all, vram_of
from detbench.quality.outputs import ask
from detbench.quality.reference import Reference
from detbench.report.photo import save_photo
from detbench.results import ImplementationInfo, Load, Run, Settings, Sweep
from detbench.schemas import ImplementationStatus


@dataclass(frozen=True)
class Plan:
    """What a sweep is to do; what `implementations` None is, `select_implementations` says."""

    implementations: tuple[str, ...] | None
    subject: Subject
    users: tuple[int, ...]
    duration_s: float
    warmup_requests: int
    dataset_name: str
    data_dir: Path
    compare_outputs: bool
    metrics_port: int


class SweepRunner:
    """Runs one plan against one server.

    A server of our own that ends in the middle is started again for the next implementation; another's is not.

    Args:
        plan: what to do.
        run_dir: receives results.json after every run.
        host: base URL of the server.
        process: the server, where it is our own and its lifetime our business.
        progress: what the person sees.

    Raises:
        ServerError: at the start, when the server does not answer or an implementation that was named cannot run.
    """

    def __init__(
        self, plan: Plan, run_dir: Path, host: str, process: ServerProcess | None, progress: SweepProgress
    ) -> None:
        self._plan = plan
        self._run_dir = run_dir
        self._progress = progress
        self._session = Session(plan.subject, run_dir, host, process, progress, self._note_problem)
        self._reference: Reference | None = None
        model_set = plan.subject.model_set
        with ServerClient(host) as client:
            offered = client.implementations()
            self._implementations = select_implementations(offered, plan.implementations, model_set)
            if line := left_out(offered, plan.implementations, model_set):
                progress.say(line)
            self._sweep = _new_sweep(client, plan, self._implementations)

    def run(self) -> Sweep:
        """Measure everything; what ends badly is a problem in the result, and what follows is measured all the same."""
        self._save()
        self._progress.expect(len(self._implementations) * len(self._plan.users), self._plan.duration_s)
        save_photo(self._plan.subject.dataset.photos[0].path, self._run_dir / "photo.jpg")
        try:
            with ServerClient(self._session.host) as client:
                unload_all(client)
                if self._plan.compare_outputs:
                    self._reference = self._session.find_reference(client)
            for status in self._implementations:
                self._measure(status)
        except DetbenchError as error:
            self._note_problem(str(error))
        self._note_not_run()
        self._update(ended=_now())
        return self._sweep

    def _measure(self, status: ImplementationStatus) -> None:
        if not self._session.revive():
            return
        plan, subject = self._plan, self._plan.subject
        with ServerClient(self._session.host) as client, self._session.trouble(f"{status.name} was not measured"):
            info = info_of(status, self._session.load_alone(client, status))
            self._keep(info)
            counted = self._session.counted(f"{status.name}: warm-up", plan.warmup_requests)
            for index in range(plan.warmup_requests):
                photo = subject.dataset.photos[index % len(subject.dataset.photos)]
                ask(client, status.name, subject.model_set, photo)
                counted()
            for users in plan.users:
                if self._add_run(client, status.name, users).status == "failed" and not self._session.alive():
                    return
            if self._reference is not None:
                comparison = self._session.compare(client, status, self._reference)
                self._update(comparisons=[*self._sweep.comparisons, comparison])
            client.unload(status.name, subject.model_set)
            self._keep(self._session.with_kernels(client, info))

    def _keep(self, info: ImplementationInfo) -> None:
        self._update(implementations=[info if i.name == info.name else i for i in self._sweep.implementations])

    def _add_run(self, client: ServerClient, implementation: str, users: int) -> Run:
        plan, model_set = self._plan, self._plan.subject.model_set
        what = f"{implementation}, {users} user{'s' if users > 1 else ''}"
        self._progress.doing(what)
        run = Run(implementation=implementation, model_set=model_set, users=users, status="failed", started=_now())
        request = LoadRequest(
            self._session.host,
            implementation,
            model_set,
            plan.dataset_name,
            plan.data_dir,
            len(plan.subject.dataset.photos),
            users,
            plan.duration_s,
            plan.metrics_port,
        )
        try:
            client.reset_vram_peak()
            load = run_driver(request, lambda message: self._on_message(what, message))
            run = _judged(run, load).model_copy(update={"vram": vram_of(client)})
        except ServerError as error:
            run = run.model_copy(update={"reason": self._session.reason(error)})
        run = run.model_copy(update={"ended": _now()})
        self._update(runs=[*self._sweep.runs, run])
        push_runs([each for each in self._sweep.runs if each.implementation == implementation])
        if run.status == "failed":
            self._note_problem(f"{what}: {run.reason}")
        else:
            assert run.load is not None
            latency = f", p50 {run.load.latency.p50_ms:.1f} ms" if run.load.latency else ""
            self._progress.say(f"{what}: {run.load.rps:.3g} requests/s{latency}")
        self._progress.run_done(plan.duration_s)
        return run

    def _on_message(self, what: str, message: dict[str, object]) -> None:
        self._progress.within_run(what, message)
        if not self._session.alive():
            raise ServerError("the server ended in the middle of the run")

    def _note_problem(self, problem: str) -> None:
        self._progress.say(f"problem: {problem}")
        self._update(problems=[*self._sweep.problems, problem])

    def _note_not_run(self) -> None:
        made = {(run.implementation, run.users) for run in self._sweep.runs}
        missing = [
            Run(
                implementation=status.name,
                model_set=self._plan.subject.model_set,
                users=users,
                status="not_run",
                reason="an earlier failure, see the problems",
            )
            for status in self._implementations
            for users in self._plan.users
            if (status.name, users) not in made
        ]
        self._update(runs=[*self._sweep.runs, *missing])

    def _update(self, **fields: object) -> None:
        self._sweep = self._sweep.model_copy(update=fields)
        self._save()

    def _save(self) -> None:
        write_atomically(self._run_dir / "results.json", self._sweep.model_dump_json(indent=1))


def _new_sweep(client: ServerClient, plan: Plan, implementations: list[ImplementationStatus]) -> Sweep:
    health = client.health()
    return Sweep(
        started=_now(),
        settings=Settings(
            implementations=[status.name for status in implementations],
            model_set=plan.subject.model_set,
            users=list(plan.users),
            duration_s=plan.duration_s,
            warmup_requests=plan.warmup_requests,
            dataset=plan.dataset_name,
            images=len(plan.subject.dataset.photos),
            host=client.host,
            server=health.settings,
        ),
        environment=environment_of(health),
        weights=client.model_set(plan.subject.model_set).models,
        implementations=[info_of(status) for status in implementations],
    )


def _judged(run: Run, load: Load) -> Run:
    succeeded = load.requests - load.failures
    if load.latency is None or load.failures > succeeded:
        reason = f"{succeeded} of {load.requests} requests succeeded within the duration"
        if load.errors:
            reason += f"; most often: {max(load.errors, key=lambda error: load.errors[error])}"
        return run.model_copy(update={"load": load, "reason": reason})
    return run.model_copy(update={"status": "ok", "load": load, "warnings": warnings_of(load)})


def _now() -> datetime:
    return datetime.now(UTC)
