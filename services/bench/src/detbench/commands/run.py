"""`detbench run`: the sweep."""

import argparse
import contextlib
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from detbench.commands.console import open_console
from detbench.commands.options import (
    add_dataset_options,
    add_server_options,
    opened_dataset,
    own_server,
    positive_float,
    positive_int,
)
from detbench.errors import DetbenchError
from detbench.report import write_reports
from detbench.report.table import terminal_table
from detbench.runner import Plan, SweepRunner
from detbench.server_process import ServerProcess
from detbench.sweep_progress import SweepProgress

NAME = "run"
SUMMARY = "load implementations one after the other, and report"
DESCRIPTION = """\
The sweep: for each implementation, load it alone, warm it up, and measure it with each number of users (a closed loop:
every user sends the next image as soon as the last is answered). Each user's first answer is not counted. With
--compare-outputs also ask each implementation for every image and compare with the reference, which is made when
there is none of these weights and images.

  detbench run --implementations baseline invalid --model-set mixed --users 1 4 8 --duration 30 --compare-outputs

Everything goes to outputs/<time>-<model set>/: results.json (after every run), results.csv, results.md, report.html,
the detections and the server's log. Against a server of yours (--host), everything that it has loaded is unloaded
first, so that VRAM is that of one implementation.

Exit status: 0 all was measured and every implementation that claims to be exact is; 1 not so; 2 nothing was measured.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--implementations",
        nargs="+",
        metavar="NAME",
        help="what to measure; default: all that the server can run with the model set",
    )
    add_server_options(parser)
    parser.add_argument(
        "--users", nargs="+", type=positive_int, default=[1, 4, 8], metavar="N", help="users at once (default: 1 4 8)"
    )
    parser.add_argument(
        "--duration", type=positive_float, default=30.0, metavar="S", help="seconds of each run (default: 30)"
    )
    parser.add_argument(
        "--warmup", type=positive_int, default=5, metavar="N", help="requests before the first run (default: 5)"
    )
    parser.add_argument("--compare-outputs", action="store_true", help="compare with the reference, too")
    add_dataset_options(parser)


def execute(options: argparse.Namespace) -> int:
    """Run the sweep and report; returns the exit status."""
    console = open_console()
    dataset = opened_dataset(options)
    plan = Plan(
        implementations=tuple(options.implementations) if options.implementations else None,
        model_set=options.model_set,
        users=tuple(dict.fromkeys(options.users)),
        duration_s=options.duration,
        warmup_requests=options.warmup,
        dataset=dataset,
        dataset_name=options.dataset,
        data_dir=options.data_dir,
        outputs_dir=options.outputs_dir,
        compare_outputs=options.compare_outputs,
    )
    run_dir = new_run_dir(options.outputs_dir, options.model_set)
    with contextlib.ExitStack() as stack:
        process: ServerProcess | None = None
        if not options.host:
            process = stack.enter_context(own_server(run_dir / "server.log", options.data_dir))
            with console.status("starting the server"):
                process.wait_ready()
        host = process.host if process else options.host
        progress = stack.enter_context(SweepProgress(Console()))
        runner = SweepRunner(plan, run_dir, host, process, progress)
        try:
            sweep = runner.run()
        finally:
            write_reports(run_dir)
    console.print(terminal_table(sweep))
    for problem in sweep.problems:
        console.print(f"problem: {problem}", style="red", markup=False, soft_wrap=True)
    console.print(f"report: {run_dir / 'report.html'}", markup=False, soft_wrap=True)
    return 1 if sweep.problems else 0


def new_run_dir(outputs_dir: Path, model_set: str) -> Path:
    """Make the folder of a new run, named by the time (UTC)."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{model_set}"
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        with contextlib.suppress(FileExistsError):
            (outputs_dir / f"{name}{suffix}").mkdir(parents=True)
            return outputs_dir / f"{name}{suffix}"
    raise DetbenchError(f"too many runs called {name} under {outputs_dir}")
