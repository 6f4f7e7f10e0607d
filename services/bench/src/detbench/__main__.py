"""The command `detbench`, or `python -m detbench`: one subcommand per job, each in a module of `detbench.commands`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich_argparse import RawDescriptionRichHelpFormatter

from detbench import __version__
from detbench.commands import accuracy, capacity, compare, datasets, export, reference, report, run
from detbench.errors import DetbenchError
from detbench.variables import forget_empty_variables

_DESCRIPTION = """\
Benchmarks several EfficientDet detectors that run on every image: which way of running them is fastest,
what it costs in memory, and whether it still gives the same answers.

The usual order, all of which `detbench run --compare-outputs` does by itself:
  1. detbench datasets sample      photographs to send
  2. detbench reference            what `baseline` answers, stored
  3. detbench run                  load, one implementation after the other
  4. detbench compare              output error against the reference
  5. detbench report               table, results.json, results.csv, report.html

How much load a server takes before a limit of yours is missed: detbench capacity --slo p99=200ms
Another server, Triton or KServe, measured the same way: detbench run --protocol oip --host http://…
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")  # not below argparse's many lines of usage


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each subcommand sets `handler`."""
    parser = _Parser(prog="detbench", description=_DESCRIPTION, formatter_class=RawDescriptionRichHelpFormatter)
    parser.add_argument("--version", action="version", version=f"detbench {__version__}")
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (datasets, reference, run, capacity, compare, accuracy, report, export):
        subparser = subcommands.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            formatter_class=RawDescriptionRichHelpFormatter,
        )
        command.configure(subparser)
        subparser.set_defaults(handler=command.execute)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 well, 1 a measurement failed, 2 it could not be made.

    SIGTERM (`timeout`, `docker stop`) ends it like Ctrl-C: reports are written, a server of our own is ended.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    forget_empty_variables()
    options = build_parser().parse_args(arguments)
    errors = Console(stderr=True)
    try:
        status: int = options.handler(options)
    except DetbenchError as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        errors.print("[red]stopped[/]; what was measured is on disk")
        return 130
    return status


def _interrupt(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice; the second must not break off the ending
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
