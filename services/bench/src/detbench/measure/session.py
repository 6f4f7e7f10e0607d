"""What sweep and ablation share: one implementation alone in a server, the reference, and what goes wrong."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detbench.api.client import ServerClient
from detbench.api.schemas import Health, ImplementationStatus, Loaded
from detbench.datasets import Dataset
from detbench.errors import MalformedOutput, ReferenceMismatch, ServerError
from detbench.measure.progress import SweepProgress, loading
from detbench.measure.pushgateway import push_comparisons
from detbench.measure.revision import git_revision
from detbench.measure.selection import Deployment
from detbench.measure.server_process import Cluster
from detbench.measure.servers import Server, Servers
from detbench.quality.compare import compare
from detbench.quality.outputs import ask, ask_replicas, collect_by_replica, write_outputs
from detbench.quality.reference import Reference, load_reference, make_reference
from detbench.quality.replicas import worst_of
from detbench.results.quality import Comparison
from detbench.results.sweep import BASELINE, Environment, ImplementationInfo


@dataclass(frozen=True)
class Subject:
    """What is measured with: the models, the images, where references and runs are, and how outputs are asked for.

    `concurrency` is the number of requests in flight while outputs are compared, `max_map_loss` how much of mAP may be
    lost by what does not claim to be exact. `reference` is that of a server that can make none.
    """

    model_set: str
    dataset: Dataset
    outputs_dir: Path
    concurrency: int
    max_map_loss: float
    reference: Reference | None = None


class Session:
    """The dealings of one run with its servers.

    Args:
        subject: what is measured with.
        run_dir: receives the detections that are compared.
        servers: where it is measured.
        progress: what the person sees.
        note_problem: takes a line about each thing that ends badly.
    """

    def __init__(
        self,
        subject: Subject,
        run_dir: Path,
        servers: Servers,
        progress: SweepProgress,
        note_problem: Callable[[str], None],
    ) -> None:
        self._subject = subject
        self._run_dir = run_dir
        self._servers = servers
        self._progress = progress
        self._note_problem = note_problem

    @contextmanager
    def trouble(self, what: str, server: Server | None = None) -> Iterator[None]:
        """Note what a server does wrong in the block as a problem, and go on after it.

        Args:
            server: the one that the block asks, where it outlives the block.
        """
        try:
            yield
        except (ServerError, MalformedOutput) as error:
            self._note_problem(f"{what}: {server.reason(error) if server else error}")

    @contextmanager
    def alone(self, deployment: Deployment) -> Iterator[tuple[Server, ImplementationInfo]]:
        """A server in which an implementation alone is loaded, and what it is and took.

        Where that load was the first on this machine, a server of our own is ended, and a new one loads again: what is
        measured then never holds what conversion, search or compilation left in the process.
        """
        status, replicas = deployment.status, deployment.replicas
        cluster = Cluster(f"{status.name}@{self._subject.model_set}", replicas) if replicas else None
        first: Loaded | None = None
        with self._servers.empty(deployment.slug, cluster) as server:
            loaded = self._load(server, deployment)
            if loaded.first:
                first = loaded
            if first is None or server.process is None:
                yield server, info_of(status, loaded, first)
                return
        with self._servers.empty(deployment.slug, cluster) as server:
            yield server, info_of(status, self._load(server, deployment), first)

    def _load(self, server: Server, deployment: Deployment) -> Loaded:
        status, model_set = deployment.status, self._subject.model_set
        if status.compiles:
            self._progress.say(loading(status))
        self._progress.doing(loading(status))
        loaded = server.client.load(status.name, model_set)
        if deployment.replicas:  # which have loaded it before they were ready
            of_replica = {each.name: each.loads for each in server.client.implementations()}[status.name]
            loaded = next((each for each in of_replica if each.model_set == model_set), loaded)
        if status.compiles or loaded.first:
            self._progress.say(f"{status.name}: loaded in {loaded.load_s:.0f} s{' for the first time' * loaded.first}")
        if loaded.remark and not (loaded.first and server.process):  # then the load that is measured says it
            self._progress.say(f"{status.name} runs {loaded.remark}")
        return loaded

    def warm_up(self, server: Server, deployment: Deployment, requests: int) -> None:
        """Send so many requests, of a cluster to each replica.

        Raises:
            DatasetError, ServerError, MalformedOutput: see `detbench.quality.outputs.ask`.
        """
        photos, asked = self._subject.dataset.photos, ask_replicas if deployment.replicas else ask
        counted = self.counted(f"{deployment}: warm-up", requests)
        for index in range(requests):
            asked(server.client, deployment.status.name, self._subject.model_set, photos[index % len(photos)])
            counted()

    def with_kernels(self, server: Server, info: ImplementationInfo) -> ImplementationInfo:
        """`info` with its kernels per request; without, and a line that says why, where they cannot be counted.

        A server of our own counts by itself, and is ended after that. Another one, which goes on, counts in a process
        that loads the implementation again, for which it is unloaded first.
        """
        model_set = self._subject.model_set
        own = server.process is not None
        self._progress.doing(f"{info.name}: counting kernels")
        try:
            if not own:
                server.client.unload(info.name, model_set)
            count = server.client.kernels(info.name, model_set, in_process=own)
        except ServerError as error:
            self._progress.say(f"{info.name}: kernels per request are n/a: {server.reason(error)}")
            return info
        return info.model_copy(update={"kernels_per_request": count})

    def find_reference(self, client: ServerClient) -> Reference:
        """The stored reference, or a new one where none is of this kind of device, these weights and images."""
        model_set, photos = self._subject.model_set, self._subject.dataset.photos
        if self._subject.reference is not None:
            found = self._subject.reference
            write_outputs(self._run_dir / "detections" / "reference.json", found.outputs_of(photos))
            return found
        try:
            found = load_reference(self._subject.outputs_dir, model_set, client.health().device)
            found.check_server(client, photos)
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
        """Output error of an implementation, of a cluster that of the worst replica; one that claims to be exact and is
        not is a problem.
        """
        model_set, photos = self._subject.model_set, self._subject.dataset.photos
        counted = self.counted(f"{status.name}: comparing", len(photos))
        outputs = collect_by_replica(
            client, status.name, model_set, photos, lambda _: counted(), self._subject.concurrency
        )
        compared = partial(
            compare,
            reference.outputs_of(photos),
            implementation=status.name,
            model_set=model_set,
            exact=status.exact,
            weights=reference.manifest.weights,
            annotations=self._subject.dataset.annotations,
            map_loss=self._subject.max_map_loss,
        )
        comparison = worst_of({replica: compared(found) for replica, found in outputs.items()})
        write_outputs(self._run_dir / "detections" / f"{status.name}.json", outputs[comparison.replica])
        push_comparisons([comparison])
        if status.exact and not comparison.gate.passed:
            self._note_problem(f"{status.name} claims to be exact and is not: {'; '.join(comparison.gate.reasons)}")
        return comparison

    def counted(self, what: str, total: int) -> Callable[[], None]:
        """A function that shows one more of `total` as done with each call."""
        numbers = itertools.count(1)
        return lambda: self._progress.doing(f"{what}, {next(numbers)} of {total}")


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


def info_of(
    status: ImplementationStatus, loaded: Loaded | None = None, first: Loaded | None = None
) -> ImplementationInfo:
    """What the server says of an implementation, with what loading it took where it was loaded.

    Args:
        loaded: the load that is measured.
        first: the first load on this machine, where this run made it; it may be the same one.
    """
    return ImplementationInfo(
        name=status.name,
        description=status.description,
        exact=status.exact,
        precision=status.precision,
        recipe=status.recipe,
        remark=loaded.remark if loaded else "",
        load_s=loaded.load_s if loaded else None,
        first_load_s=first.load_s if first else None,
        compile_s=compiled.compile_s if (compiled := first or loaded) else None,
    )
