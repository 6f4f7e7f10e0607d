"""The sweep: implementations x numbers of users, one implementation loaded at a time, every result on disk at once."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image, ImageOps

from detbench.atomic import write_atomically
from detbench.client import ImplementationStatus, ServerClient
from detbench.datasets import Dataset
from detbench.errors import DetbenchError, MalformedOutput, ReferenceMismatch, ServerError
from detbench.load.measure import LoadRequest, run_driver, warnings_of
from detbench.pushgateway import push_comparisons, push_run
from detbench.quality.compare import compare
from detbench.quality.outputs import collect, write_outputs
from detbench.quality.reference import Reference, load_reference, make_reference
from detbench.results import Environment, ImplementationInfo, Load, Run, Settings, Sweep, Vram
from detbench.revision import git_revision
from detbench.selection import select_implementations
from detbench.server_process import ServerProcess
from detbench.sweep_progress import SweepProgress


@dataclass(frozen=True)
class Plan:
    """What a sweep is to do; `implementations` None is all that the server can run with the model set."""

    implementations: tuple[str, ...] | None
    model_set: str
    users: tuple[int, ...]
    duration_s: float
    warmup_requests: int
    dataset: Dataset
    dataset_name: str
    data_dir: Path
    outputs_dir: Path
    compare_outputs: bool


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
        self._process = process
        self._progress = progress
        self._host = host
        self._reference: Reference | None = None
        with ServerClient(host) as client:
            self._implementations = select_implementations(
                client.implementations(), plan.implementations, plan.model_set
            )
            self._sweep = _new_sweep(client, plan, self._implementations)

    def run(self) -> Sweep:
        """Measure everything; what ends badly is a problem in the result, and what follows is measured all the same."""
        self._save()
        self._progress.expect(len(self._implementations) * len(self._plan.users), self._plan.duration_s)
        save_photo(self._plan.dataset.photos[0].path, self._run_dir / "photo.jpg")
        try:
            with ServerClient(self._host) as client:
                for status in client.implementations():
                    for model_set in status.loaded:
                        client.unload(status.name, model_set)
                if self._plan.compare_outputs:
                    self._reference = self._find_reference(client)
            for status in self._implementations:
                self._measure(status)
        except DetbenchError as error:
            self._note_problem(str(error))
        self._note_not_run()
        self._update(ended=_now())
        return self._sweep

    def _find_reference(self, client: ServerClient) -> Reference:
        plan = self._plan
        photos = plan.dataset.photos
        try:
            found = load_reference(plan.outputs_dir, plan.model_set)
            found.check(client.model_set(plan.model_set).models, photos)
        except ReferenceMismatch as error:
            self._progress.say(f"making a reference: {error}")
            client.load("baseline", plan.model_set)
            counted = self._counted(f"reference of {plan.model_set}", len(photos))
            found = make_reference(client, plan.model_set, plan.dataset, plan.outputs_dir, lambda _: counted())
            client.unload("baseline", plan.model_set)
        write_outputs(self._run_dir / "detections" / "reference.json", found.outputs_of(photos))
        return found

    def _measure(self, status: ImplementationStatus) -> None:
        if not self._server_lives():
            return
        plan = self._plan
        with ServerClient(self._host) as client, self._trouble(f"{status.name} was not measured"):
            self._progress.doing(f"{status.name}: loading")
            loaded = client.load(status.name, plan.model_set)
            self._note_load_time(status.name, loaded.load_s)
            counted = self._counted(f"{status.name}: warm-up", plan.warmup_requests)
            for index in range(plan.warmup_requests):
                photo = plan.dataset.photos[index % len(plan.dataset.photos)]
                client.infer(status.name, plan.model_set, photo.path.read_bytes(), photo.content_type)
                counted()
            for users in plan.users:
                if self._add_run(client, status.name, users).status == "failed" and not self._alive():
                    return
            if self._reference is not None:
                self._compare(client, status)
            client.unload(status.name, plan.model_set)

    def _add_run(self, client: ServerClient, implementation: str, users: int) -> Run:
        plan = self._plan
        what = f"{implementation}, {users} user{'s' if users > 1 else ''}"
        self._progress.doing(what)
        run = Run(implementation=implementation, model_set=plan.model_set, users=users, status="failed", started=_now())
        request = LoadRequest(
            self._host,
            implementation,
            plan.model_set,
            plan.dataset_name,
            plan.data_dir,
            len(plan.dataset.photos),
            users,
            plan.duration_s,
        )
        try:
            client.reset_vram_peak()
            load = run_driver(request, lambda message: self._on_message(what, message))
            vram = client.vram()
            run = _judged(run, load).model_copy(
                update={
                    "vram": Vram(
                        allocated_mb=vram.allocated_mb,
                        reserved_mb=vram.reserved_mb,
                        peak_mb=vram.peak_mb,
                        device_used_mb=vram.device_used_mb,
                    )
                }
            )
        except ServerError as error:
            run = run.model_copy(update={"reason": self._reason(error)})
        run = run.model_copy(update={"ended": _now()})
        self._update(runs=[*self._sweep.runs, run])
        push_run(run)
        if run.status == "failed":
            self._note_problem(f"{what}: {run.reason}")
        else:
            assert run.load is not None
            latency = f", p50 {run.load.latency.p50_ms:.1f} ms" if run.load.latency else ""
            self._progress.say(f"{what}: {run.load.rps:.3g} requests/s{latency}")
        self._progress.run_done(plan.duration_s)
        return run

    def _compare(self, client: ServerClient, status: ImplementationStatus) -> None:
        assert self._reference is not None
        plan = self._plan
        counted = self._counted(f"{status.name}: comparing", len(plan.dataset.photos))
        outputs = collect(client, status.name, plan.model_set, plan.dataset.photos, lambda _: counted())
        write_outputs(self._run_dir / "detections" / f"{status.name}.json", outputs)
        comparison = compare(
            self._reference.outputs_of(plan.dataset.photos),
            outputs,
            implementation=status.name,
            model_set=plan.model_set,
            exact=status.exact,
            weights=self._sweep.weights,
            annotations=plan.dataset.annotations,
        )
        self._update(comparisons=[*self._sweep.comparisons, comparison])
        push_comparisons([comparison])
        if status.exact and not comparison.gate.passed:
            self._note_problem(f"{status.name} claims to be exact and is not: {'; '.join(comparison.gate.reasons)}")

    def _on_message(self, what: str, message: dict[str, object]) -> None:
        self._progress.within_run(what, message)
        if not self._alive():
            raise ServerError("the server ended in the middle of the run")

    def _alive(self) -> bool:
        return self._process is None or self._process.alive()

    def _server_lives(self) -> bool:
        """Whether there is a server to measure; a dead one of our own is started again."""
        if self._process is None or self._process.alive():
            return True
        self._progress.doing("starting the server again")
        try:
            self._process.start()
            self._process.wait_ready()
        except ServerError as error:
            self._note_problem(self._reason(error))
            return False
        self._host = self._process.host
        return True

    def _reason(self, error: ServerError) -> str:
        if self._process is not None and not self._process.alive():
            return f"the server ended: {error}\n{self._process.log_tail()}"
        return str(error)

    @contextmanager
    def _trouble(self, what: str) -> Iterator[None]:
        """Note what goes wrong in the block as a problem, and go on after it."""
        try:
            yield
        except (ServerError, MalformedOutput) as error:
            reason = self._reason(error) if isinstance(error, ServerError) else str(error)
            self._note_problem(f"{what}: {reason}")

    def _counted(self, what: str, total: int) -> Callable[[], None]:
        """A function that shows one more of `total` as done with each call."""
        numbers = itertools.count(1)
        return lambda: self._progress.doing(f"{what}, {next(numbers)} of {total}")

    def _note_problem(self, problem: str) -> None:
        self._progress.say(f"problem: {problem}")
        self._update(problems=[*self._sweep.problems, problem])

    def _note_load_time(self, name: str, load_s: float) -> None:
        infos = [
            info.model_copy(update={"load_s": load_s}) if info.name == name else info
            for info in self._sweep.implementations
        ]
        self._update(implementations=infos)

    def _note_not_run(self) -> None:
        made = {(run.implementation, run.users) for run in self._sweep.runs}
        missing = [
            Run(
                implementation=status.name,
                model_set=self._plan.model_set,
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


def save_photo(source: Path, target: Path) -> None:
    """Save `source` upright as RGB JPEG for the report, whatever its format."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        ImageOps.exif_transpose(image).convert("RGB").save(target, quality=92)


def _new_sweep(client: ServerClient, plan: Plan, implementations: list[ImplementationStatus]) -> Sweep:
    health = client.health()
    return Sweep(
        started=_now(),
        settings=Settings(
            implementations=[status.name for status in implementations],
            model_set=plan.model_set,
            users=list(plan.users),
            duration_s=plan.duration_s,
            warmup_requests=plan.warmup_requests,
            dataset=plan.dataset_name,
            images=len(plan.dataset.photos),
            host=client.host,
            server=health.settings,
        ),
        environment=Environment(
            device=health.device,
            device_name=health.device_name,
            driver=health.driver,
            versions=health.versions,
            cpu_count=health.cpu_count,
            torch_threads=health.torch_threads,
            platform=health.platform,
            git_revision=health.revision or git_revision(),
            clocks_mhz=health.clocks_mhz,
        ),
        weights=client.model_set(plan.model_set).models,
        implementations=[
            ImplementationInfo(name=s.name, description=s.description, exact=s.exact, precision=s.precision)
            for s in implementations
        ],
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
