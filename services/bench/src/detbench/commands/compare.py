"""`detbench compare`: output error of implementations against the stored reference."""

import argparse
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn

from detbench.api.client import ServerClient
from detbench.atomic import write_atomically
from detbench.commands.console import print_notes, print_tables
from detbench.commands.options import (
    add_concurrency_option,
    add_dataset_options,
    add_implementations_option,
    add_server_options,
    connected,
    opened_dataset,
)
from detbench.datasets import Dataset
from detbench.errors import DatasetError, MalformedOutput, ServerError
from detbench.measure.progress import loading
from detbench.measure.pushgateway import push_comparisons
from detbench.measure.selection import left_out, select_implementations
from detbench.quality.compare import compare
from detbench.quality.outputs import collect
from detbench.quality.reference import Reference, load_reference
from detbench.report.table import output_error_table
from detbench.results import Comparison

NAME = "compare"
SUMMARY = "output error of implementations against the stored reference"
DESCRIPTION = """\
Asks implementations for every image and compares with the reference that `detbench reference` stored.
Detections with score >= 0.1 are assigned one to one by overlap (IoU >= 0.5); what has no partner counts against
a zero box and a zero score. The gate is what float32 reassociation leaves: boxes MSE < 1e-4 px², scores MSE < 1e-9,
no coordinate of a pair 0.05 px and no score 1e-3 apart, all labels equal, nothing missed, nothing spurious. What does
not claim to be exact is tolerated where its answers are near: mean IoU of the pairs >= 0.9, scores MSE of the pairs
<= 2.5e-3, labels accuracy >= 0.8, and with annotations at most 0.01 of mAP lost.

  detbench compare --implementations baseline invalid --model-set mixed

BENCHMARK_PUSHGATEWAY_URL names a Pushgateway that takes the figures, for dashboards; so it does for `detbench run`.

Exit status: 0 every implementation that claims to be exact is; 1 one is not, or failed; 2 nothing could be compared.
"""

_COMPARISONS = TypeAdapter(list[Comparison])


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_implementations_option(parser, "compare")
    add_server_options(parser)
    add_dataset_options(parser)
    add_concurrency_option(parser)
    parser.add_argument(
        "--gate",
        choices=("exact", "all"),
        default="exact",
        help="who must keep to its limits: those that claim to be exact, or all, the others being tolerated at least "
        "(default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="file for the figures; default: <outputs>/compare/<model set>.json")


def execute(options: argparse.Namespace) -> int:
    """Compare; returns the exit status."""
    console = Console()
    dataset = opened_dataset(options)
    path = options.json or options.outputs_dir / "compare" / f"{options.model_set}.json"
    with connected(options, console) as client:
        reference = load_reference(options.outputs_dir, options.model_set, client.health().device)
        reference.check(client.model_set(options.model_set).models, dataset.photos)
        comparisons, failures = _compare_all(client, options, dataset, reference, path, console)
    push_comparisons(comparisons)
    print_tables(output_error_table(comparisons))
    held = [each for each in comparisons if each.exact or options.gate == "all"]
    for comparison in held:
        for reason in comparison.reasons:
            console.print(f"{comparison.implementation}: {reason}", markup=False, soft_wrap=True)
    print_notes(comparisons)
    for failure in failures:
        console.print(failure, style="red", markup=False, soft_wrap=True)
    asked = f"{len(dataset.photos)} images of {dataset.name}, {options.concurrency} at a time"
    console.print(f"{asked} (batches: {_batches(comparisons)}); {path}", markup=False, soft_wrap=True)
    return 0 if not failures and all(each.verdict != "failed" for each in held) else 1


def _batches(comparisons: list[Comparison]) -> str:
    """The batch sizes that each implementation answered in, with their images: folded 1 (3 images), 4 (20)."""
    return "; ".join(
        f"{each.implementation} "
        + ", ".join(f"{size} ({images} image{'s'[: images > 1]})" for size, images in each.batch_sizes.items())
        for each in comparisons
    )


def _compare_all(
    client: ServerClient,
    options: argparse.Namespace,
    dataset: Dataset,
    reference: Reference,
    path: Path,
    console: Console,
) -> tuple[list[Comparison], list[str]]:
    """Compare one after the other; `path` has every figure as soon as it is known."""
    comparisons: list[Comparison] = []
    failures: list[str] = []
    offered = client.implementations()
    chosen = select_implementations(offered, options.implementations, options.model_set)
    if line := left_out(offered, options.implementations, options.model_set):
        console.print(line, markup=False, soft_wrap=True)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True) as progress:
        for status in chosen:
            task = progress.add_task(loading(status), total=len(dataset.photos))
            try:
                client.load(status.name, options.model_set)
                progress.update(task, description=status.name)
                outputs = collect(
                    client,
                    status.name,
                    options.model_set,
                    dataset.photos,
                    partial(_advance, progress, task),
                    options.concurrency,
                )
                comparisons.append(
                    compare(
                        reference.outputs_of(dataset.photos),
                        outputs,
                        implementation=status.name,
                        model_set=options.model_set,
                        exact=status.exact,
                        weights=reference.manifest.weights,
                        annotations=dataset.annotations,
                    )
                )
                if options.model_set not in status.loaded:
                    client.unload(status.name, options.model_set)
            except (DatasetError, ServerError, MalformedOutput) as error:
                failures.append(f"{status.name}: {error}")
            write_atomically(path, _COMPARISONS.dump_json(comparisons, indent=1))
    return comparisons, failures


def _advance(progress: Progress, task: TaskID, _: str) -> None:
    progress.advance(task)
