"""`detbench accuracy`: mAP of implementations on annotated images, and what they lose against baseline."""

import argparse
from collections.abc import Sequence
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
from detbench.errors import DatasetError
from detbench.measure.selection import select_implementations
from detbench.report.accuracy import accuracy_table, doubts
from detbench.report.table import output_error_table
from detbench.results.quality import Comparison
from detbench.results.sweep import BASELINE

NAME = "accuracy"
SUMMARY = "mAP on annotated images, and what each implementation loses"
DESCRIPTION = """\
Asks baseline and the implementations for every image of an annotated dataset, and shows COCO's mAP of each model whose
classes are the dataset's, and its difference from baseline's with the interval that holds it with 95 % for images of
the same kind. Beside it the output error against baseline's answers: of pairs, and what is missed and spurious.

What does not claim to be exact may lose --max-map-loss of mAP. No stored reference is needed.

  detbench datasets roboflow_aquarium
  detbench accuracy --dataset roboflow_aquarium --model-set aquarium --implementations fastest-bf16 --max-map-loss 0.005

Exit status: 0 none loses more, and whatever claims to be exact is; 1 not so, or one failed; 2 there is no mAP.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_implementations_option(parser, "evaluate")
    add_server_options(parser)
    add_dataset_options(parser)
    add_concurrency_option(parser)
    add_map_loss_option(parser)
    parser.add_argument("--json", type=Path, help="file for the figures; default: <outputs>/accuracy/<model set>.json")


def execute(options: argparse.Namespace) -> int:
    """Evaluate; returns the exit status.

    Raises:
        DatasetError: the images are not annotated, or no model's classes are the annotations'.
    """
    console = Console()
    dataset = opened_dataset(options)
    if dataset.annotations is None:
        raise DatasetError(
            f"{dataset.name} has no annotations; name a dataset that has (detbench datasets lists them), or a folder "
            "with a COCO file beside its images"
        )
    path = options.json or options.outputs_dir / "accuracy" / f"{options.model_set}.json"
    with connected(options, console) as client:
        asking = Asking(client, options, dataset, console)
        others = [status for status in asking.chosen() if status.name != BASELINE]
        (baseline,) = select_implementations(client.implementations(), [BASELINE], options.model_set)
        with asking.progress() as progress:
            answers = asking.outputs_of(baseline, progress)
        weights, reference = client.model_set(options.model_set).models, next(iter(answers.values()))
        comparisons, failures = asking.compare_all([baseline, *others], reference, weights, path, {BASELINE: answers})
    print_notes(comparisons)
    if not any(each.ground_truth for each in comparisons):
        raise DatasetError("no model of the set has a mAP, for the reasons above")
    print_tables(accuracy_table(comparisons), output_error_table(comparisons))
    for line in [*doubts(comparisons, options.max_map_loss), *_reasons(comparisons), *failures]:
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"{len(dataset.photos)} images of {dataset.name}; {path}", markup=False, soft_wrap=True)
    return 0 if not failures and all(each.verdict != "failed" for each in comparisons) else 1


def _reasons(comparisons: Sequence[Comparison]) -> list[str]:
    return [f"{each.implementation}: {reason}" for each in comparisons for reason in each.reasons]
