"""`detbench reference`: store what `baseline` answers."""

import argparse

from rich.progress import Progress

from detbench.commands.console import open_console
from detbench.commands.options import add_dataset_options, add_server_options, connected, opened_dataset
from detbench.quality.reference import make_reference

NAME = "reference"
SUMMARY = "store what baseline answers, to compare with"
DESCRIPTION = """\
Asks the server's `baseline` for every image and stores the detections under outputs/reference/<model set>/, with a
manifest of what they belong to: weights, images, versions. `detbench compare` refuses a reference of other weights
or other images.

  detbench reference --model-set mixed --dataset sample
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_server_options(parser)
    add_dataset_options(parser)


def execute(options: argparse.Namespace) -> int:
    """Make the reference; returns the exit status."""
    console = open_console()
    dataset = opened_dataset(options)
    with connected(options, console) as client:
        with console.status("loading baseline"):
            client.load("baseline", options.model_set)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"baseline of {options.model_set}", total=len(dataset.photos))
            reference = make_reference(
                client, options.model_set, dataset, options.outputs_dir, lambda _: progress.advance(task)
            )
    folder = options.outputs_dir / "reference" / options.model_set
    console.print(f"{len(reference.outputs)} images of {dataset.name}: {folder}", markup=False, soft_wrap=True)
    return 0
