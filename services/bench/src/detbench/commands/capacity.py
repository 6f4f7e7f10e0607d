"""`detbench capacity`: the highest rate at which limits hold."""

import argparse
from pathlib import Path

from rich.console import Console

from detbench.commands.console import print_capacities
from detbench.commands.offered import PROCESS_RPS, add_arrival_options
from detbench.commands.options import (
    add_dataset_options,
    add_implementations_option,
    add_replicas_option,
    add_resume_option,
    add_server_options,
    check_replicas,
    check_resumable,
    limit,
    opened_dataset,
    percentage,
    positive_float,
    servers_of,
)
from detbench.commands.run import new_run_dir
from detbench.datasets import Dataset, fetch_or_open
from detbench.errors import DetbenchError, LimitMissed
from detbench.load.schedules import schedule_of
from detbench.measure.capacity import CapacityPlan, CapacityRunner
from detbench.measure.progress import SweepProgress
from detbench.measure.resume import held
from detbench.measure.session import Subject
from detbench.quality.compare import TOLERATED_MAP_LOSS
from detbench.report import read_capacities, write_capacity_reports
from detbench.results.capacity import Capacities
from detbench.slo import FIGURES
from detbench.variables import positive_int

# What --resume takes from the run.
_OF_THE_PLAN = (
    *(
        "implementations",
        "replicas",
        "model_set",
        "dataset",
        "max_images",
        "slo",
        "arrivals",
        "burstiness",
        "seed",
        "max_in_flight",
    ),
    *("max_rate", "max_duration", "precision", "processes", "warmup"),
)

NAME = "capacity"
SUMMARY = "find the highest rate at which limits hold"
DESCRIPTION = """\
For each implementation the highest rate of requests at which all limits hold (its capacity), by trying rates: first
what a few users in a closed loop get, then open loops above and below, then halves of what lies between the highest
that passed and the lowest that failed, until the two are near enough. Both are then tried again, for longer.

  detbench capacity --implementations baseline fastest --slo p99=200ms --slo errors=0.1%
  detbench capacity --implementations fastest --slo p90=3s --max-duration 600 --precision 5%
  detbench capacity --implementations fastest --replicas 1 2 4 --slo p99=200ms
  detbench capacity --resume outputs/20261126-174500-mixed-capacity

A probe is ended as soon as a limit cannot be held any more. One that fails because the load generator was busy, or
because the machine's host took cores away, says nothing of the server: it is made again, and if that is no better the
capacity is a lower bound.

Each implementation has a server process of its own, as with detbench run, or with --replicas a cluster for each number
of replicas, whose capacity is compared with that of one replica. Everything goes to
outputs/<time>-<model set>-capacity/: capacity.json (after every probe), capacity.csv, capacity.md, capacity.html.

Exit status: 0 every implementation has a capacity; 1 something ended badly; 2 nothing was measured; 3 an implementation
holds the limits at no rate.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_implementations_option(parser, "measure")
    add_replicas_option(parser)
    add_server_options(parser)
    parser.add_argument(
        "--slo",
        action="append",
        type=limit,
        default=[],
        metavar="LIMIT",
        help="a limit that a rate must hold, several of them one by one: p99=200ms, errors=0.1%%, memory=1500MB; of "
        + ", ".join(FIGURES),
    )
    parser.add_argument(
        "--max-rate", type=positive_float, metavar="R", help="requests per second that are not exceeded"
    )
    parser.add_argument(
        "--max-duration",
        type=positive_float,
        default=300.0,
        metavar="S",
        help="seconds of all probes of one search together (default: %(default)g); a slow server needs more of them "
        "for percentiles that are certain",
    )
    parser.add_argument(
        "--precision",
        type=percentage,
        default=0.02,
        metavar="P",
        help="how near the rate that passed and the one that failed are to each other at the end (default: 2%%)",
    )
    add_arrival_options(parser)
    parser.add_argument(
        "--warmup", type=positive_int, default=5, metavar="N", help="requests before the first load (default: 5)"
    )
    parser.add_argument(
        "--processes",
        type=positive_int,
        default=1,
        metavar="N",
        help=f"of the load generator, which send each load together ({PROCESS_RPS}; default: %(default)s)",
    )
    add_dataset_options(parser)
    add_resume_option(parser, _OF_THE_PLAN)


def execute(options: argparse.Namespace) -> int:
    """Search for the capacities and report; returns the exit status."""
    check_replicas(options)
    if options.resume:
        with held(options.resume):
            broken_off = _broken_off(options)
            return _search(options, _plan_of(broken_off, options), options.resume, broken_off)
    plan, run_dir = _plan(options), new_run_dir(options.outputs_dir, f"{options.model_set}-capacity")
    with held(run_dir):
        return _search(options, plan, run_dir)


def _search(
    options: argparse.Namespace, plan: CapacityPlan, run_dir: Path, broken_off: Capacities | None = None
) -> int:
    console = Console()
    with SweepProgress(console) as progress:
        servers = servers_of(options, run_dir, progress, plan.max_in_flight)
        runner = CapacityRunner(plan, run_dir, servers, progress, broken_off)
        runner.prepare()
        try:
            capacities = runner.run()
        finally:
            write_capacity_reports(run_dir)
    print_capacities(capacities)
    console.print(f"report: {run_dir / 'capacity.html'}", markup=False, soft_wrap=True)
    if any(each.passed is None for each in capacities.capacities):
        return LimitMissed.exit_code
    return 1 if capacities.problems else 0


def _plan(options: argparse.Namespace) -> CapacityPlan:
    if not options.slo:
        raise DetbenchError("a capacity is of limits; name them with --slo, such as --slo p99=200ms")
    schedule_of(1.0, options.arrivals, options.burstiness, seed=options.seed)  # says what is wrong with them
    return CapacityPlan(
        implementations=tuple(options.implementations) if options.implementations else None,
        replicas=tuple(options.replicas or ()),
        subject=_subject(options.model_set, opened_dataset(options), options.outputs_dir),
        slo=tuple(options.slo),
        arrivals=options.arrivals,
        burstiness=options.burstiness,
        seed=options.seed,
        max_in_flight=options.max_in_flight,
        max_rate=options.max_rate,
        max_duration_s=options.max_duration,
        precision=options.precision,
        processes=options.processes,
        warmup_requests=options.warmup,
        dataset_name=options.dataset,
        data_dir=options.data_dir,
    )


def _subject(model_set: str, dataset: Dataset, outputs_dir: Path) -> Subject:
    """As every session has; a search compares no outputs."""
    return Subject(model_set, dataset, outputs_dir, concurrency=1, max_map_loss=TOLERATED_MAP_LOSS)


def _broken_off(options: argparse.Namespace) -> Capacities:
    """The run of `--resume`.

    Raises:
        DetbenchError: it cannot be read, has ended, or other options ask for something else than it did.
    """
    capacities = read_capacities(options.resume)
    check_resumable(options, capacities.ended)
    return capacities


def _plan_of(broken_off: Capacities, options: argparse.Namespace) -> CapacityPlan:
    settings = broken_off.settings
    dataset = fetch_or_open(settings.dataset, options.data_dir, settings.images)
    options.host = settings.host
    return CapacityPlan(
        implementations=tuple(settings.implementations),
        replicas=() if settings.host else tuple(settings.replicas),
        subject=_subject(settings.model_set, dataset, options.outputs_dir),
        slo=tuple(settings.slo),
        arrivals=settings.arrivals,
        burstiness=settings.burstiness,
        seed=settings.seed,
        max_in_flight=settings.max_in_flight,
        max_rate=settings.max_rate,
        max_duration_s=settings.max_duration_s,
        precision=settings.precision,
        processes=settings.processes,
        warmup_requests=settings.warmup_requests,
        dataset_name=settings.dataset,
        data_dir=options.data_dir,
    )
