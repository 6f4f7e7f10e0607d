"""`detbench report`: make the reports of a run again."""

import argparse
import os
from pathlib import Path

from rich.console import Console

from detbench.commands.console import print_ablation, print_capacities, print_differences, print_sweep
from detbench.errors import DetbenchError
from detbench.report import read_sweep, write_ablation_reports, write_capacity_reports, write_reports

NAME = "report"
SUMMARY = "tables, CSV, Markdown and page of a run"
DESCRIPTION = """\
Makes the reports of a run from its results.json, ablation.json or capacity.json, which `detbench run` and
`detbench capacity` write after every measurement: also of a run that was broken off.

  detbench report                                  # the newest run
  detbench report outputs/20261123-174500-mixed

Of two runs it prints which figures differ by more than the noise of their rounds (detbench run --repeats 5):

  detbench report outputs/20261123-174500-mixed outputs/20261124-091500-mixed
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "run_dirs", type=Path, nargs="*", metavar="RUN", help="folder of a run, or two to compare; default: the newest"
    )
    parser.add_argument("--other-machine", action="store_true", help="compare runs of two machines, too")
    parser.add_argument(
        "--outputs-dir",
        type=Path,
        default=os.environ.get("BENCHMARK_OUTPUTS_DIR", "outputs"),
        help="where to look for the newest (env BENCHMARK_OUTPUTS_DIR; default: %(default)s)",
    )


def execute(options: argparse.Namespace) -> int:
    """Write the reports and print the table; returns the exit status."""
    console = Console()
    if len(options.run_dirs) > 2:
        raise DetbenchError(f"{len(options.run_dirs)} runs: one is reported, two are compared")
    if len(options.run_dirs) == 2:
        a, b = map(read_sweep, options.run_dirs)
        print_differences(a, b, options.other_machine)
        return 0
    run_dir = options.run_dirs[0] if options.run_dirs else newest_run(options.outputs_dir)
    if (run_dir / "ablation.json").exists():
        print_ablation(write_ablation_reports(run_dir))
        page = run_dir / "ablation.html"
    elif (run_dir / "capacity.json").exists():
        print_capacities(write_capacity_reports(run_dir))
        page = run_dir / "capacity.html"
    else:
        print_sweep(write_reports(run_dir))
        page = run_dir / "report.html"
    console.print(f"report: {page}", markup=False, soft_wrap=True)
    return 0


def newest_run(outputs_dir: Path) -> Path:
    """The folder of the run whose results.json, ablation.json or capacity.json was written last.

    Raises:
        DetbenchError: there is none.
    """
    names = ("results.json", "ablation.json", "capacity.json")
    found = [path for name in names for path in outputs_dir.glob(f"*/{name}")]
    if not found:
        raise DetbenchError(f"there is no run in {outputs_dir}; make one with: detbench run")
    return max(found, key=lambda path: path.stat().st_mtime).parent
