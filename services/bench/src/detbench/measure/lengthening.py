"""Runs that are lengthened until a percentile is certified."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from detbench.load.figures import together
from detbench.measure.generators import LoadRequest, run_load
from detbench.results.loads import Load, OpenLoop

# Of the requests that are still needed, so that a rate that falls a little does not take another part.
_ROOM = 1.05


@dataclass(frozen=True)
class Until:
    """The end of a run that goes on until `percentile`, such as p99, is certified, for `max_duration_s` at most."""

    percentile: str
    max_duration_s: float


def run_until(
    request: LoadRequest,
    until: Until | None,
    on_message: Callable[[dict[str, Any]], None],
    lengthened: Callable[[str], None],
) -> Load:
    """Measure one load for its duration, and then in further parts until enough requests certify the percentile.

    A further part is a load of its own, with its own warm users and, in an open loop, its own arrivals: the seed is one
    higher. Counts and histograms add up. Nothing is added to a part without an answer.

    Args:
        until: None: the duration alone.
        on_message: as of `run_load`.
        lengthened: called with a line about each further part before it begins.

    Raises:
        ServerError: as `run_load`.
    """
    loads = [run_load(request, on_message)]
    while until is not None and (more_s := _more_s(together(loads), until)) > 0:
        lengthened(
            f"{sum(load.issued for load in loads):,} requests do not certify {until.percentile}: {more_s} s more"
        )
        offered = request.offered
        if isinstance(offered, OpenLoop):
            offered = offered.model_copy(update={"seed": offered.seed + len(loads)})
        loads.append(run_load(replace(request, offered=offered, duration_s=float(more_s)), on_message))
    return together(loads) if len(loads) > 1 else loads[0]


def _more_s(load: Load, until: Until) -> int:
    """Whole seconds to go on for; 0 where it is enough, would be too long, or is in vain."""
    left_s = math.floor(until.max_duration_s - load.window_s)
    if load.answered == 0 or load.latency is None or left_s < 1:
        return 0
    each = load.latency.percentiles()[until.percentile]
    if each.certified:
        return 0
    return max(1, min(left_s, math.ceil(_ROOM * (each.needed - load.issued) * load.window_s / load.issued)))
