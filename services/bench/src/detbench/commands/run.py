"""`detbench run`: the sweep."""

import argparse
import contextlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from detbench.commands.console import print_ablation, print_sweep
from detbench.commands.offered import PROCESS_RPS, add_open_loop_options, is_open_loop
from detbench.commands.options import (
    add_concurrency_option,
    add_dataset_options,
    add_implementations_option,
    add_map_loss_option,
    add_protocol_options,
    add_replicas_option,
    add_resume_option,
    add_server_options,
    check_replicas,
    check_resumable,
    limit,
    positive_float,
    servers_of,
)
from detbench.commands.sweep_plan import MAX_DURATION_S, plan_of_options, plan_of_run, servers_for, subject_of
from detbench.errors import DetbenchError, LimitMissed, ServerError
from detbench.measure.ablation import CELL_S, AblationPlan, AblationRunner
from detbench.measure.progress import SweepProgress
from detbench.measure.resume import held
from detbench.measure.selection import ALL
from detbench.measure.sweep import Plan, SweepRunner
from detbench.report import read_sweep, write_ablation_reports, write_reports
from detbench.report.rows import rows_of
from detbench.results.sweep import CEILING, Sweep
from detbench.slo import FIGURES
from detbench.variables import of_variable, port, positive_int

# What --resume takes from the run.
_OF_THE_PLAN = (
    *(
        "implementations",
        "replicas",
        "model_set",
        "dataset",
        "max_images",
        "concurrency",
        "compare_outputs",
        "keep_requests",
        "slo",
        "max_map_loss",
        "protocol",
        "tensors",
    ),
    *("users", "rate", "steps", "trace", "arrivals", "burstiness", "seed", "max_in_flight"),
    *("duration", "until", "max_duration", "warmup", "repeats", "processes", "ablation"),
)

NAME = "run"
SUMMARY = "load implementations one after the other, and report"
DESCRIPTION = """\
The sweep: for each implementation, start a server, load it there, warm it up, and measure it with each number of users
(a closed loop: every user sends the next image as soon as the last is answered; each user's first answer is not
counted), or with --rate, --steps or --trace in an open loop: requests are sent at their times, whatever is answered,
and latency counts from these times. With --compare-outputs also ask each implementation for every image, and compare
that and all answers of the loads with the reference, which is made when there is none of these weights and images.

  detbench run --implementations baseline invalid --model-set mixed --users 1 4 8 --duration 30 --compare-outputs
  detbench run --implementations fastest --rate 20 --arrivals poisson --duration 60
  detbench run --implementations fastest --steps 30s:5,30s:10,30s:20 --arrivals constant

Every run has a verdict: valid, or invalid with reasons and what to do about them (the generator was the limit, the rate
was not achieved, figures drifted, the machine's host took cores away, …). --strict makes an invalid run an exit status.
--until lengthens each run until a percentile is certified by enough requests. --slo sets limits that runs must hold:

  detbench run --implementations fastest --rate 20 --until p99 --slo p99=200ms --slo errors=0.1% --strict

A run that was broken off goes on where it stopped, on the same machine, with --resume; what it has is not measured
again.

With --replicas each implementation is measured in clusters of so many replicas, which are started for it one after the
other, and a table says what more of them are worth. A cluster that runs is measured as any server: name it with --host.

  detbench run --implementations fastest --replicas 1 2 4 --users 16 --repeats 3 --compare-outputs

With --protocol oip, a server that is not ours is measured the same way: Triton, KServe, or whatever else speaks the
Open Inference Protocol. Its answers are compared with the reference, which `detbench reference` has to make before:

  detbench reference --model-set mixed
  detbench run --protocol oip --host http://localhost:8000 --implementations MODEL --compare-outputs

With --ablation, instead: technique by technique, from sequential eager to all together, the latency of a batch without
HTTP, decode and queue, the share that each contributes to the speed-up, memory and output error. The server names the
rows and what each adds to. Of the other options it takes --implementations (which of its rows, measured in this order;
the tables keep the server's), --model-set, --duration, --concurrency and the dataset's.

  detbench run --ablation --model-set uniform --batch-sizes 1 4 16
  detbench run --ablation --model-set uniform --batch-sizes 1 4 16 --reverse      # the order should not matter

Each implementation has a server process of its own, in which no other was ever loaded, and a first one is asked what
there is and for the reference. Where a load was the first on this machine (weights, converted networks, choices,
compiled code), that server is ended and a new one loads again: the measured process never holds what the first left.
Its memory peak is thus its own; the report also says how much of it an empty server does not take. A server that ends
or does not start is a problem in the report, with the end of its log, and the next implementation has its own.
Against a server of yours (--host), all is measured in that one, one implementation at a time: everything that it has
loaded is unloaded first, unless it is a cluster, and its memory may hold what others left.

Everything goes to outputs/<time>-<model set>/: results.json (after every run), results.csv, results.md, report.html,
the detections and the log of each server; of an ablation to outputs/<time>-<model set>-ablation/: ablation.json (after
every cell), .csv, .md and .html.

Exit status: 0 all was measured and what claims to be exact is, under load, too; 1 not so, or with --strict a run is
invalid; 2 nothing was measured; 3 a limit of --slo is missed, by what was not measured, too.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_implementations_option(parser, "measure")
    add_replicas_option(parser)
    add_server_options(parser)
    add_protocol_options(parser)
    parser.add_argument(
        "--users",
        nargs="+",
        type=positive_int,
        metavar="N",
        help="users at once, in a closed loop (default: 1 4 8)",
    )
    parser.add_argument(
        "--duration",
        type=positive_float,
        metavar="S",
        help="seconds of each run (default: 30, or what --steps or --trace takes, which a shorter one cuts off; of "
        "each cell of an ablation 10)",
    )
    parser.add_argument(
        "--until",
        choices=("p50", "p90", "p99", "p99.9"),
        help="lengthen each run until so many requests were sent that they certify this percentile",
    )
    parser.add_argument(
        "--max-duration",
        type=positive_float,
        metavar="S",
        help=f"seconds of a run that is lengthened, at most (default: {MAX_DURATION_S:g})",
    )
    parser.add_argument(
        "--slo",
        action="append",
        type=limit,
        default=[],
        metavar="LIMIT",
        help="a limit that every run must hold, several of them one by one: p99=200ms, errors=0.1%%, memory=1500MB; of "
        + ", ".join(FIGURES),
    )
    parser.add_argument(
        "--keep-requests",
        action="store_true",
        help="write every request to requests/<implementation>-load<n>-round<n>.csv: its times, photo and outcome",
    )
    parser.add_argument("--strict", action="store_true", help="exit status 1 where the verdict on a run is invalid")
    parser.add_argument(
        "--warmup", type=positive_int, default=5, metavar="N", help="requests before the first run (default: 5)"
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        metavar="N",
        help="rounds, in the order A B, B A, …, each in servers of its own: ratios of a sweep get an interval, which "
        "needs two rounds and is narrow with five (default: 1; of an ablation 24, and 2 on a GPU or with --host)",
    )
    parser.add_argument(
        "--processes",
        type=positive_int,
        default=1,
        metavar="N",
        help="of the load generator, which send each load together, each with a core of its own at best "
        f"({PROCESS_RPS}; default: %(default)s)",
    )
    add_open_loop_options(parser)
    parser.add_argument(
        "--compare-outputs",
        action="store_true",
        help="compare with the reference, too: each image, and all answers of each load",
    )
    add_concurrency_option(parser)
    add_map_loss_option(parser)
    add_dataset_options(parser)
    parser.add_argument(
        "--metrics-port",
        type=of_variable("BENCHMARK_METRICS_PORT", port),
        default=os.environ.get("BENCHMARK_METRICS_PORT", "0"),
        metavar="PORT",
        help="where Prometheus finds the metrics of a load while it runs; 0: nowhere (env BENCHMARK_METRICS_PORT; "
        "default: %(default)s)",
    )
    ablation = parser.add_argument_group("ablation")
    ablation.add_argument("--ablation", action="store_true", help="measure technique by technique instead, see above")
    ablation.add_argument(
        "--batch-sizes", nargs="+", type=positive_int, metavar="N", help="images of the batches timed (default: 1)"
    )
    ablation.add_argument(
        "--batches",
        type=positive_int,
        metavar="N",
        help="batches timed in each round; default: as --duration holds in all rounds (10 s), 12 at least",
    )
    ablation.add_argument("--reverse", action="store_true", help="measure the rows in reverse order")
    add_resume_option(parser, _OF_THE_PLAN)


def execute(options: argparse.Namespace) -> int:
    """Run the sweep or the ablation and report; returns the exit status."""
    check_replicas(options)
    if options.ablation and options.replicas:
        raise DetbenchError("an ablation times batches in one process; leave out --replicas, or --ablation")
    if options.ablation and (is_open_loop(options) or options.slo or options.until):
        raise DetbenchError(
            "an ablation times batches without load; leave out --rate, --steps, --trace, --slo, --until"
        )
    if options.protocol == "oip" and (options.ablation or not options.host):
        raise DetbenchError(
            "--protocol oip is for loads on a server that runs; "
            + ("leave out --ablation" if options.ablation else "say where it is: --host")
        )
    if options.tensors and options.protocol != "oip":
        raise DetbenchError("--tensors is for --protocol oip; add that")
    if options.max_duration and not options.until:
        raise DetbenchError("--max-duration is of a run that is lengthened; add --until p99")
    if not options.ablation and (options.batch_sizes or options.batches or options.reverse):
        raise DetbenchError("--batch-sizes, --batches and --reverse are of the ablation; add --ablation")
    console = Console()
    if options.ablation:
        return _ablate(options, console)
    try:
        return _sweep(options, console)
    except ServerError as error:
        if not options.slo:
            raise
        raise LimitMissed(f"{error}; what is not measured misses its limits") from error


def _sweep(options: argparse.Namespace, console: Console) -> int:
    if options.resume:
        with held(options.resume):
            broken_off = _broken_off(options)
            return _measure(options, plan_of_run(broken_off, options), options.resume, console, broken_off)
    plan, run_dir = plan_of_options(options), new_run_dir(options.outputs_dir, options.model_set)
    with held(run_dir):
        return _measure(options, plan, run_dir, console)


def _measure(
    options: argparse.Namespace, plan: Plan, run_dir: Path, console: Console, broken_off: Sweep | None = None
) -> int:
    with SweepProgress(console) as progress:
        runner = SweepRunner(plan, run_dir, servers_for(plan, options, run_dir, progress), progress, broken_off)
        runner.prepare()
        try:
            sweep = runner.run()
        finally:
            write_reports(run_dir)
    print_sweep(sweep)
    status = _ended(sweep.problems, run_dir / "report.html", console)
    runs = [row.run for row in rows_of(sweep) if row.run.implementation != CEILING]
    if any(run.missed for run in runs):
        return LimitMissed.exit_code
    return 1 if options.strict and any(run.verdict == "invalid" for run in runs) else status


def _broken_off(options: argparse.Namespace) -> Sweep:
    """The run of `--resume`.

    Raises:
        DetbenchError: it cannot be read, has ended, or other options ask for something else than it did.
    """
    sweep = read_sweep(options.resume)
    check_resumable(options, sweep.ended)
    return sweep


def _ablate(options: argparse.Namespace, console: Console) -> int:
    names = tuple(options.implementations) if options.implementations else None
    plan = AblationPlan(
        subject=subject_of(options),
        implementations=names if names != (ALL,) else None,
        batch_sizes=tuple(sorted(set(options.batch_sizes or [1]))),
        repeats=options.repeats,
        batches=options.batches,
        cell_s=options.duration or CELL_S,
        reverse=options.reverse,
    )
    run_dir = new_run_dir(options.outputs_dir, f"{options.model_set}-ablation")
    with SweepProgress(console) as progress:
        runner = AblationRunner(plan, run_dir, servers_of(options, run_dir, progress), progress)
        runner.prepare()
        try:
            ablation = runner.run()
        finally:
            write_ablation_reports(run_dir)
    print_ablation(ablation)
    return _ended(ablation.problems, run_dir / "ablation.html", console)


def _ended(problems: Sequence[str], report: Path, console: Console) -> int:
    for problem in problems:
        console.print(f"problem: {problem}", style="red", markup=False, soft_wrap=True)
    console.print(f"report: {report}", markup=False, soft_wrap=True)
    return 1 if problems else 0


def new_run_dir(outputs_dir: Path, what: str) -> Path:
    """Make the folder of a new run of `what`, named by the time (UTC)."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{what}"
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        with contextlib.suppress(FileExistsError):
            (outputs_dir / f"{name}{suffix}").mkdir(parents=True)
            return outputs_dir / f"{name}{suffix}"
    raise DetbenchError(f"too many runs called {name} under {outputs_dir}")
