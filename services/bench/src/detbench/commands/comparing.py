"""Asking implementations for every image and comparing their answers, one after the other, with a progress bar."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn

from detbench.api.client import ServerClient
from detbench.api.schemas import ImplementationStatus, ModelWeights
from detbench.atomic import write_atomically
from detbench.datasets import Dataset
from detbench.errors import DatasetError, MalformedOutput, ServerError
from detbench.measure.progress import loading
from detbench.measure.selection import left_out, select_implementations
from detbench.quality.compare import compare
from detbench.quality.outputs import ImageOutput, collect_by_replica
from detbench.quality.replicas import worst_of
from detbench.results.quality import Comparison

_COMPARISONS = TypeAdapter(list[Comparison])


class Asking:
    """One command that asks a server for all images of a dataset.

    Args:
        client: the server.
        options: of the command, with `model_set`, `implementations`, `concurrency` and `max_map_loss`.
        dataset: the images.
        console: where to draw the progress.
    """

    def __init__(self, client: ServerClient, options: argparse.Namespace, dataset: Dataset, console: Console) -> None:
        self._client = client
        self._options = options
        self._dataset = dataset
        self._console = console

    def chosen(self) -> list[ImplementationStatus]:
        """The implementations to ask; what is left out without being asked is told.

        Raises:
            ServerError: one that was named cannot run.
        """
        offered, names, model_set = (
            self._client.implementations(),
            self._options.implementations,
            self._options.model_set,
        )
        if line := left_out(offered, names, model_set):
            self._console.print(line, markup=False, soft_wrap=True)
        return select_implementations(offered, names, model_set)

    def outputs_of(self, status: ImplementationStatus, progress: Progress) -> dict[str | None, list[ImageOutput]]:
        """What one implementation answers, loaded for it and unloaded again where it was not loaded before.

        By replica of a cluster, else by None; see `collect_by_replica`.

        Raises:
            ServerError: it cannot be loaded, or does not answer.
            MalformedOutput: an answer is no answer.
        """
        photos, model_set = self._dataset.photos, self._options.model_set
        task = progress.add_task(loading(status), total=len(photos))
        self._client.load(status.name, model_set)
        progress.update(task, description=status.name)
        advance = partial(_advance, progress, task)
        outputs = collect_by_replica(self._client, status.name, model_set, photos, advance, self._options.concurrency)
        if model_set not in status.loaded:
            self._client.unload(status.name, model_set)
        return outputs

    def compare_all(
        self,
        statuses: Sequence[ImplementationStatus],
        reference: Sequence[ImageOutput],
        weights: Sequence[ModelWeights],
        path: Path,
        known: Mapping[str, dict[str | None, list[ImageOutput]]] | None = None,
    ) -> tuple[list[Comparison], list[str]]:
        """Compare each with `reference`, of a cluster every replica; `path` has every figure as soon as it is known.

        Args:
            known: what implementations have answered already, which are not asked again.

        Returns:
            The comparisons, and a line about each implementation that could not be compared.
        """
        comparisons: list[Comparison] = []
        failures: list[str] = []
        with self.progress() as progress:
            for status in statuses:
                try:
                    outputs = (known or {}).get(status.name) or self.outputs_of(status, progress)
                    compared = partial(
                        compare,
                        reference,
                        implementation=status.name,
                        model_set=self._options.model_set,
                        exact=status.exact,
                        weights=weights,
                        annotations=self._dataset.annotations,
                        map_loss=self._options.max_map_loss,
                    )
                    comparisons.append(worst_of({replica: compared(found) for replica, found in outputs.items()}))
                except (DatasetError, ServerError, MalformedOutput) as error:
                    failures.append(f"{status.name}: {error}")
                write_atomically(path, _COMPARISONS.dump_json(comparisons, indent=1))
        return comparisons, failures

    def progress(self) -> Progress:
        """A bar for each implementation."""
        return Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=self._console, transient=True)


def _advance(progress: Progress, task: TaskID, _: str) -> None:
    progress.advance(task)
