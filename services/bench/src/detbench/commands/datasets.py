"""`detbench datasets`: list the named datasets, or get some."""

import argparse
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from detbench.commands.console import print_tables
from detbench.datasets import NAMES, SOURCES, fetch

NAME = "datasets"
SUMMARY = "list the named datasets, or get some"
DESCRIPTION = """\
Without a name, lists the datasets. With names, gets them into <data dir>/<name>/; a download that was broken off goes
on where it ended, and a second call does nothing. Every other command also takes any folder of images as --dataset.

  detbench datasets sample coco_val2017

Mirrors: DETBENCH_COCO_IMAGES_URL and DETBENCH_COCO_ANNOTATIONS_URL name other addresses of the same files (size and
checksum must hold). DETBENCH_AQUARIUM_URL is your own download link of Roboflow's COCO export.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("BENCHMARK_DATA_DIR", "data"),
        help="folder of the datasets (env BENCHMARK_DATA_DIR; default: %(default)s)",
    )


def execute(options: argparse.Namespace) -> int:
    """List or fetch; returns the exit status."""
    console = Console()
    for name in options.names:
        dataset = fetch(name, options.data_dir)
        where = options.data_dir / name
        console.print(f"{name}: {len(dataset.photos)} images in {where}", markup=False, soft_wrap=True)
    if not options.names:
        table = Table("name", "what", "images", "download", "licence", "here")
        for name, source in SOURCES.items():
            here = "yes" if (options.data_dir / name).is_dir() else "no"
            table.add_row(name, source.summary, str(source.images), source.download, source.licence, here)
        print_tables(table)
    return 0
