"""`detbench compare`: output error of implementations against the stored reference."""

import argparse
from pathlib import Path

from rich.console import Console

from detbench.commands.comparing import Asking
from detbench.commands.console import print_notes, print_tables
from detbench.commands.options import (
    add_concurrency_option,
    add_dataset_options,
    add_implementations_option,
    add_map_loss_option,
    add_server_options,
    connected,
    opened_dataset,
)
from detbench.measure.pushgateway import push_comparisons
from detbench.quality.reference import load_reference
from detbench.report.table import output_error_table
from detbench.results.quality import Comparison

NAME = "compare"
SUMMARY = "output error of implementations against the stored reference"
DESCRIPTION = """\
Asks implementations for every image and compares with the reference that `detbench reference` stored.
Detections with score >= 0.1 are assigned one to one by overlap (IoU >= 0.5); what has no partner counts against
a zero box and a zero score. The gate is what float32 reassociation leaves: boxes MSE < 1e-4 px², scores MSE < 1e-9,
no coordinate of a pair 0.05 px and no score 1e-3 apart, all labels equal, nothing missed, nothing spurious. What does
not claim to be exact is tolerated where its answers are near: mean IoU of the pairs >= 0.9, scores MSE of the pairs
<= 2.5e-3, labels accuracy >= 0.8, and with annotations no more than --max-map-loss of mAP lost.

Of a cluster (--host) every replica is asked: the figures are those of the worst, and whichever fails is named.

  detbench compare --implementations baseline invalid --model-set mixed

BENCHMARK_PUSHGATEWAY_URL names a Pushgateway that takes the figures, for dashboards; so it does for `detbench run`.

Exit status: 0 every implementation that claims to be exact is; 1 one is not, or failed; 2 nothing could be compared.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_implementations_option(parser, "compare")
    add_server_options(parser)
    add_dataset_options(parser)
    add_concurrency_option(parser)
    add_map_loss_option(parser)
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
        others = reference.check_server(client, dataset.photos)
        asking = Asking(client, options, dataset, console)
        expected, weights = reference.outputs_of(dataset.photos), reference.manifest.weights
        comparisons, failures = asking.compare_all(asking.chosen(), expected, weights, path)
    push_comparisons(comparisons)
    print_tables(output_error_table(comparisons))
    held = [each for each in comparisons if each.exact or options.gate == "all"]
    for comparison in held:
        for reason in comparison.reasons:
            console.print(f"{comparison.implementation}: {reason}", markup=False, soft_wrap=True)
    print_notes(comparisons)
    failures = [*others, *failures]
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
