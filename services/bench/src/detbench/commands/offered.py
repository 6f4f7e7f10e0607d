"""The load that the options of `detbench run` describe: users in a closed loop, or arrivals in an open one."""

import argparse
import math
from pathlib import Path

from detbench.errors import DetbenchError
from detbench.load.schedules import ARRIVALS, schedule_of
from detbench.results.loads import ClosedLoop, OpenLoop
from detbench.variables import positive_int

DEFAULT_USERS = (1, 4, 8)
PROCESS_RPS = "one sends 600 requests per second at most, measured on a busy machine"

_DEFAULT_DURATION_S = 30.0


def add_open_loop_options(parser: argparse.ArgumentParser) -> None:
    """The options of an open loop, in a group of their own."""
    group = parser.add_argument_group(
        "open loop", "requests at their times, instead of --users; one of --rate, --steps and --trace"
    )
    group.add_argument("--rate", type=float, metavar="R", help="requests per second")
    group.add_argument("--steps", metavar="S", help='rates one after the other: "10s:5,1.5m:20"')
    group.add_argument("--trace", type=Path, metavar="FILE", help="arrival times, seconds from the start, one a line")
    add_arrival_options(group)


def add_arrival_options(group: argparse._ActionsContainer) -> None:
    """How requests come at a rate: `--arrivals`, `--burstiness`, `--seed` and `--max-in-flight`."""
    group.add_argument("--arrivals", choices=ARRIVALS, help="gaps at that rate (default: poisson)")
    group.add_argument(
        "--burstiness", type=float, metavar="B", help="of --arrivals gamma: 1 is Poisson, less comes in bursts"
    )
    group.add_argument("--seed", type=int, default=0, help="of arrivals and photos (default: %(default)s)")
    group.add_argument(
        "--max-in-flight",
        type=positive_int,
        default=256,
        metavar="N",
        help="requests without an answer at most; what is due beyond is counted as dropped (default: %(default)s)",
    )


def is_open_loop(options: argparse.Namespace) -> bool:
    """Whether an option asks for arrivals."""
    return any(
        value is not None
        for value in (options.rate, options.steps, options.trace, options.arrivals, options.burstiness)
    )


def offered_load(options: argparse.Namespace) -> tuple[tuple[ClosedLoop | OpenLoop, ...], float]:
    """The loads to measure, and the seconds of each.

    Raises:
        DetbenchError: options contradict each other, a number is out of range, or the trace cannot be read.
    """
    if not is_open_loop(options):
        users = dict.fromkeys(options.users or DEFAULT_USERS)
        return tuple(ClosedLoop(users=each) for each in users), options.duration or _DEFAULT_DURATION_S
    if options.users:
        raise DetbenchError("--users is a closed loop, and the other options are of an open one; leave one out")
    schedule = schedule_of(
        options.rate, options.arrivals, options.burstiness, options.steps, options.trace, options.seed
    )
    longest_s = _DEFAULT_DURATION_S if math.isinf(schedule.duration_s) and not options.duration else math.inf
    duration_s = min(schedule.duration_s, options.duration or math.inf, longest_s)
    if duration_s <= 0:
        raise DetbenchError(f"{options.trace}: all requests arrive at the start; a rate needs a later one")
    offered = OpenLoop(
        schedule=str(schedule),
        rate=options.rate,
        arrivals=options.arrivals,
        burstiness=options.burstiness,
        steps=options.steps,
        trace=str(options.trace) if options.trace else None,
        seed=options.seed,
        max_in_flight=options.max_in_flight,
    )
    return (offered,), duration_s
