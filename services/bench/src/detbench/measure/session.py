"""What every measurement does with the server: load one implementation alone, compare it, outlive the server's end."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detbench.client import ServerClient
from detbench.datasets import Dataset
from detbench.errors import DetbenchError, ReferenceMismatch, ServerError
from detbench.measure.progress import SweepProgress, loading
from detbench.measure.pushgateway import push_comparisons
from detbench.measure.revision import git_revision
from detbench.measure.server_process import ServerProcess
from detbench.quality.compare import compare
from detbench.quality.outputs import collect, write_outputs
from detbench.quality.reference import Reference, load_reference, make_reference
from detbench.results import BASELINE, Comparison, Environment, ImplementationInfo, Vram
from detbench.schemas import Health, ImplementationStatus, Loaded


@dataclass(frozen=True)
class Subject:
    """What is measured with: the models, the images, where references and runs are, and how outputs are asked for.

    `concurrency` is the number of requests in flight while outputs are compared.
    """

    model_set: str
    dataset: Dataset
    outputs_dir: Path
    concurrency: int


class Session:
    """The dealings of one run with one server.

    A server of our own that ends in the middle is started again by `revive`; another's is not.

    Args:
        subject: what is measured with.
        run_dir: receives the detections that are compared.
        host: base URL of the server.
        process: the server, where it is our own and its lifetime our business.
        progress: what the person sees.
        note_problem: takes a line about each thing that ends badly.
    """

    def __init__(
        self,
        subject: Subject,
        run_dir: Path,
        host: str,
        process: ServerProcess | None,
        progress: SweepProgress,
        note_problem: Callable[[str], None],
    ) -> None:
        self.host = host
        self._subject = subject
        self._run_dir = run_dir
        self._process = process
        self._progress = progress
        self._note_problem = note_problem

    def alive(self) -> bool:
        """Whether the server runs, as far as that is ours to know."""
        return self._process is None or self._process.alive()

    def revive(self) -> bool:
        """Whether there is a server to measure; a dead one of our own is started again."""
        if self._process is None or not self._process.ended():
            return True
        self._progress.doing("starting the server again")
        try:
            self._process.start()
            self._process.wait_ready()
        except ServerError as error:
            self._note_problem(self.reason(error))
            return False
        self.host = self._process.host
        return True

    def reason(self, error: Exception) -> str:
        """The error in words; with the end of its log where the server has ended."""
        if isinstance(error, ServerError) and self._process is not None and self._process.ended():
            return f"the server ended: {error}\n{self._process.log_tail()}"
        return str(error)

    @contextmanager
    def trouble(self, what: str) -> Iterator[None]:
        """Note what goes wrong in the block as a problem, and go on after it."""
        try:
            yield
        except DetbenchError as error:
            self._note_problem(f"{what}: {self.reason(error)}")

    def load_alone(self, client: ServerClient, status: ImplementationStatus) -> Loaded:
        """Load an implementation after unloading all others."""
        unload_all(client)
        if status.compiles:
            self._progress.say(loading(status))
        self._progress.doing(loading(status))
        loaded = client.load(status.name, self._subject.model_set)
        if status.compiles:
            self._progress.say(f"{status.name}: loaded in {loaded.load_s:.0f} s")
        if loaded.remark:
            self._progress.say(f"{status.name} runs {loaded.remark}")
        return loaded

    def with_kernels(self, client: ServerClient, info: ImplementationInfo) -> ImplementationInfo:
        """`info` with its kernels per request; without, and a line that says why, where they cannot be counted.

        To be called when it is not loaded any more: the server counts in a process that loads it again.
        """
        self._progress.doing(f"{info.name}: counting kernels")
        try:
            count = client.kernels(info.name, self._subject.model_set)
        except ServerError as error:
            self._progress.say(f"{info.name}: kernels per request are n/a: {self.reason(error)}")
            return info
        return info.model_copy(update={"kernels_per_request": count})

    def find_reference(self, client: ServerClient) -> Reference:
        """The stored reference, or a new one where none is of this kind of device, these weights and images."""
        model_set, photos = self._subject.model_set, self._subject.dataset.photos
        try:
            found = load_reference(self._subject.outputs_dir, model_set, client.health().device)
            found.check(client.model_set(model_set).models, photos)
        except ReferenceMismatch as error:
            self._progress.say(f"making a reference: {error}")
            client.load(BASELINE, model_set)
            counted = self.counted(f"reference of {model_set}", len(photos))
            found = make_reference(
                client, model_set, self._subject.dataset, self._subject.outputs_dir, lambda _: counted()
            )
            client.unload(BASELINE, model_set)
        write_outputs(self._run_dir / "detections" / "reference.json", found.outputs_of(photos))
        return found

    def compare(self, client: ServerClient, status: ImplementationStatus, reference: Reference) -> Comparison:
        """Output error of an implementation; one that claims to be exact and is not is a problem."""
        model_set, photos = self._subject.model_set, self._subject.dataset.photos
        counted = self.counted(f"{status.name}: comparing", len(photos))
        outputs = collect(client, status.name, model_set, photos, lambda _: counted(), self._subject.concurrency)
        write_outputs(self._run_dir / "detections" / f"{status.name}.json", outputs)
        comparison = compare(
            reference.outputs_of(photos),
            outputs,
            implementation=status.name,
            model_set=model_set,
            exact=status.exact,
            weights=reference.manifest.weights,
            annotations=self._subject.dataset.annotations,
        )
        push_comparisons([comparison])
        if status.exact and not comparison.gate.passed:
            self._note_problem(f"{status.name} claims to be exact and is not: {'; '.join(comparison.gate.reasons)}")
        return comparison

    def counted(self, what: str, total: int) -> Callable[[], None]:
        """A function that shows one more of `total` as done with each call."""
        numbers = itertools.count(1)
        return lambda: self._progress.doing(f"{what}, {next(numbers)} of {total}")


def unload_all(client: ServerClient) -> None:
    """Unload everything that the server has loaded."""
    for status in client.implementations():
        for model_set in status.loaded:
            client.unload(status.name, model_set)


def vram_of(client: ServerClient) -> Vram:
    """GPU memory now, as results keep it."""
    return Vram.model_validate(client.vram().model_dump(include=set(Vram.model_fields)))


def environment_of(health: Health) -> Environment:
    """The machine and the software that answer, as results keep them."""
    return Environment(
        device=health.device,
        device_name=health.device_name,
        driver=health.driver,
        versions=health.versions,
        cpu_count=health.cpu_count,
        torch_threads=health.torch_threads,
        platform=health.platform,
        git_revision=health.revision or git_revision(),
        clocks_mhz=health.clocks_mhz,
    )


def info_of(status: ImplementationStatus, loaded: Loaded | None = None) -> ImplementationInfo:
    """What the server says of an implementation, with what loading it took where it was loaded."""
    return ImplementationInfo(
        name=status.name,
        description=status.description,
        exact=status.exact,
        precision=status.precision,
        load_s=loaded.load_s if loaded else None,
        compile_s=loaded.compile_s if loaded else None,
    )
