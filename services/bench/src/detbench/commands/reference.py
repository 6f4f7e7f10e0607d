"""`detbench reference`: store what `baseline` answers."""

import argparse

from rich.console import Console
from rich.progress import Progress

from detbench.api.client import ServerClient
from detbench.commands.options import add_dataset_options, add_server_options, connected, opened_dataset
from detbench.datasets import Dataset
from detbench.errors import ReferenceMismatch
from detbench.quality.reference import load_reference, make_reference, reference_folder
from detbench.results.sweep import BASELINE

NAME = "reference"
SUMMARY = "store what baseline answers, to compare with"
DESCRIPTION = """\
Asks the server's `baseline` for every image and stores the detections, with a manifest of what they belong to: weights,
images, versions. `detbench compare` refuses a reference of other weights or other images. Each kind of device has its
own, outputs/reference/<model set>/<cpu or cuda>/, for answers of devices differ in more than rounding.

  detbench reference --model-set mixed --dataset sample
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_server_options(parser)
    add_dataset_options(parser)
    parser.add_argument(
        "--keep",
        action="store_true",
        help="do nothing where the server's kind of device has a reference of these weights and images",
    )


def execute(options: argparse.Namespace) -> int:
    """Make the reference; returns the exit status."""
    console = Console()
    dataset = opened_dataset(options)
    with connected(options, console) as client:
        device = client.health().device
        folder = reference_folder(options.outputs_dir, options.model_set, device)
        if options.keep and _stored(client, options, dataset, device):
            console.print(f"kept: {folder}", markup=False, soft_wrap=True)
            return 0
        with console.status("loading baseline"):
            client.load(BASELINE, options.model_set)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"baseline of {options.model_set}", total=len(dataset.photos))
            reference = make_reference(
                client, options.model_set, dataset, options.outputs_dir, lambda _: progress.advance(task)
            )
    console.print(f"{len(reference.outputs)} images of {dataset.name}: {folder}", markup=False, soft_wrap=True)
    return 0


def _stored(client: ServerClient, options: argparse.Namespace, dataset: Dataset, device: str) -> bool:
    try:
        reference = load_reference(options.outputs_dir, options.model_set, device)
        reference.check(client.model_set(options.model_set).models, dataset.photos)
    except ReferenceMismatch:
        return False
    return True
