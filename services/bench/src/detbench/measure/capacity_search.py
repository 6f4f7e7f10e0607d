"""The search for a capacity: which rate to try next, by what was tried.

`next_step` is a function of the probes so far and of nothing else: no clock, no network, nothing kept. A search that
was broken off goes on from its probes, and a test plays the server.

From a first guess the rate goes up or down in growing steps until one passed and one failed; the bracket between the
two is then halved (in logarithms) until it is narrow enough, by longer probes where short ones have too few requests
for that. Short probes are noisy, so both ends are tried again in a longer one, which overrules the short one: where the
rate that passed fails, or the one that failed passes, the bracket moves, and the search goes on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from detbench.results.capacity import Ending, Outcome

# Of the time that a search may take: a probe at most, so that there are a dozen, and at least, so that a queue has time
# to show itself; and a confirmation.
_PROBE_SHARE = 0.08
_SHORTEST_SHARE = 0.04
_CONFIRMATION_SHARE = 0.25
# More requests than a percentile needs, as their number is random; and how many times as long a confirmation is.
_ROOM = 1.1
_CONFIRMATION = 3.0
_LEAST_CONFIRMATION = 1.5
# Seconds of a probe at least, and requests: fewer say nothing.
_SHORTEST_S = 3.0
_FEWEST_REQUESTS = 10
# What a probe takes beyond its duration: the load generator starts in 3 to 5 s on two busy cores.
_OVERHEAD_S = 5.0
# The first step upwards; each further one is its square, up to the largest.
_FIRST_STEP = 1.25
_LARGEST_STEP = 4.0
# Below this share of the first guess the rate is so low that requests hardly ever meet each other.
_LOWEST_SHARE = 1 / 50


@dataclass(frozen=True)
class Tried:
    """One probe that was made: requests per second, what came out, whether it was a longer one, and what it took.

    "unusable" is a probe that says nothing of the server.
    """

    rate: float
    outcome: Outcome
    confirms: bool
    took_s: float


@dataclass(frozen=True)
class Ask:
    """A probe to make: `rate` requests per second for `duration_s`; `confirms` is whether it is a longer one."""

    rate: float
    duration_s: float
    confirms: bool


@dataclass(frozen=True)
class Bounds:
    """What a search starts with, and what ends it.

    Attributes:
        start: the first rate, requests per second.
        requests: of a probe, so that the percentiles with a limit are certified; of fewer where the time is too short.
        max_duration_s: seconds of all probes together. A probe that would not fit is not begun.
        max_rate: not exceeded.
        precision: the failed rate over the one that passed, less one, from which on a bracket is narrow enough.
        most_probes: not exceeded.
    """

    start: float
    requests: int
    max_duration_s: float
    max_rate: float = math.inf
    precision: float = 0.02
    most_probes: int = 40

    @property
    def lowest_rate(self) -> float:
        """The rate below which none is tried."""
        fewest_in_time = _FEWEST_REQUESTS / (_CONFIRMATION_SHARE * self.max_duration_s)
        return min(_rounded(max(_LOWEST_SHARE * self.start, fewest_in_time)), self.max_rate)

    def probe_s(self, rate: float) -> float:
        """Seconds of a probe at this rate."""
        fewest_s = min(_FEWEST_REQUESTS / rate, _CONFIRMATION_SHARE * self.max_duration_s)
        return min(self._certified_s(rate), max(_SHORTEST_S, _PROBE_SHARE * self.max_duration_s, fewest_s))

    def confirmation_s(self, rate: float) -> float:
        """Seconds of a longer one."""
        longest_s = max(_CONFIRMATION_SHARE * self.max_duration_s, _LEAST_CONFIRMATION * self.probe_s(rate))
        return min(_CONFIRMATION * self._certified_s(rate), longest_s)

    def coarseness(self, rate: float) -> float:
        """How wide a bracket is, as `precision`, that short probes cannot halve: one part in √n, of n requests.

        Of simulated searches with a dozen requests a probe (M/D/1, 0.35 requests/s, 300 s) the capacities spread by
        57 % where short probes halved every bracket, and by 37 % with this.
        """
        return max(self.precision, 1 / math.sqrt(rate * self.probe_s(rate)))

    def _certified_s(self, rate: float) -> float:
        return max(_SHORTEST_S, _SHORTEST_SHARE * self.max_duration_s, _ROOM * self.requests / rate)


def next_step(tried: Sequence[Tried], bounds: Bounds) -> Ask | Ending:
    """The next probe, or what ends the search.

    Args:
        tried: all probes so far, in the order in which they were made.
    """
    low, high = bracket(tried)
    left_s = bounds.max_duration_s - sum(each.took_s for each in tried)
    wanted = _wanted(tried, bounds, low, high, left_s)
    if not isinstance(wanted, Ask):
        return wanted
    if len(tried) >= bounds.most_probes:
        return "probes"
    fits_s = left_s - _OVERHEAD_S
    if wanted.duration_s <= fits_s:
        return wanted
    # A shorter one is better than none where nothing has passed yet, and to confirm.
    shortest_s = _LEAST_CONFIRMATION * bounds.probe_s(wanted.rate) if wanted.confirms else _SHORTEST_S
    if (wanted.confirms or low is None) and fits_s >= shortest_s:
        return replace(wanted, duration_s=fits_s)
    return "time"


def bracket(tried: Sequence[Tried]) -> tuple[int | None, int | None]:
    """The places of the last rate that passed and of the first above it that failed; None where none did.

    A later probe overrules an earlier one. Two unusable ones in a row are as good as a failed one: where the generator
    or the machine is the limit, the search goes on below it.
    """
    passed: dict[float, int] = {}
    failed: dict[float, int] = {}
    for place, each in enumerate(tried):
        if each.outcome == "passed":
            passed[each.rate] = place
            failed = {rate: other for rate, other in failed.items() if rate > each.rate}
        elif each.outcome == "failed" or _unusable_again(tried, place):
            failed[each.rate] = place
            passed = {rate: other for rate, other in passed.items() if rate < each.rate}
    return passed[max(passed)] if passed else None, failed[min(failed)] if failed else None


def _unusable_again(tried: Sequence[Tried], place: int) -> bool:
    """Whether the probe at this place is the second unusable one of the same kind."""
    before = tried[place - 1] if place else None
    return (
        before is not None
        and before.outcome == tried[place].outcome == "unusable"
        and (before.rate, before.confirms) == (tried[place].rate, tried[place].confirms)
    )


def _wanted(tried: Sequence[Tried], bounds: Bounds, low: int | None, high: int | None, left_s: float) -> Ask | Ending:
    """The next probe, whether or not there is time for it, or why there is none."""
    if tried and tried[-1].outcome == "unusable" and not _unusable_again(tried, len(tried) - 1):
        again = tried[-1]
        return _confirmation(again.rate, bounds) if again.confirms else _probe(again.rate, bounds)
    if low is None:
        return _downwards(tried, bounds, high)
    if high is None:
        return _upwards(tried, bounds, low, left_s)
    passed, failed = tried[low], tried[high]
    middle = _rounded(math.sqrt(passed.rate * failed.rate))
    wide = failed.rate > (1 + bounds.precision) * passed.rate
    if failed.rate > (1 + bounds.coarseness(middle)) * passed.rate and _affordable(middle, bounds, left_s):
        return _probe(middle, bounds)
    if not passed.confirms:
        return _confirmation(passed.rate, bounds)
    if wide:
        return _confirmation(middle, bounds)
    if failed.outcome == "unusable":
        return "generator"
    return "precision" if failed.confirms else _confirmation(failed.rate, bounds)


def _downwards(tried: Sequence[Tried], bounds: Bounds, high: int | None) -> Ask | Ending:
    """Half of the lowest rate that failed, then a quarter, …; a small step where a rate has passed before."""
    if high is None:
        return _probe(min(max(_rounded(bounds.start), bounds.lowest_rate), bounds.max_rate), bounds)
    failed = tried[high]
    if failed.rate > bounds.lowest_rate:
        passed_before = any(each.outcome == "passed" for each in tried)
        step = _FIRST_STEP if passed_before else 2 ** len({each.rate for each in tried})
        return _probe(max(bounds.lowest_rate, _rounded(failed.rate / step)), bounds)
    if failed.outcome == "unusable":
        return "generator"
    return "none" if failed.confirms else _confirmation(failed.rate, bounds)


def _upwards(tried: Sequence[Tried], bounds: Bounds, low: int, left_s: float) -> Ask | Ending:
    """A step above the highest rate that passed, then its square, …; a small one first where a rate failed before."""
    passed = tried[low]
    if any(each.outcome == "failed" for each in tried):
        since = len(list(takewhile(lambda each: each.outcome == "passed" and not each.confirms, reversed(tried))))
        # The ninth square is above the first step of any precision from 0.1 %, and of 100 % still a number.
        step = min(_FIRST_STEP, (1 + bounds.precision) ** 2 ** min(1 + since, 9))
    else:
        steps = len({each.rate for each in tried}) - 1
        step = min(_LARGEST_STEP, _FIRST_STEP**2 ** min(steps, 3))  # the third square is above the largest
    higher = min(bounds.max_rate, _rounded(step * passed.rate))
    if passed.rate < bounds.max_rate and _affordable(higher, bounds, left_s):
        return _probe(higher, bounds)
    if not passed.confirms:
        return _confirmation(passed.rate, bounds)
    return "max-rate" if passed.rate >= bounds.max_rate else "time"


def _affordable(rate: float, bounds: Bounds, left_s: float) -> bool:
    """Whether the time is enough to try a rate and to confirm it, so that no search ends with one that is not."""
    return bounds.probe_s(rate) + bounds.confirmation_s(rate) + 2 * _OVERHEAD_S <= left_s


def _probe(rate: float, bounds: Bounds) -> Ask:
    return Ask(rate, bounds.probe_s(rate), confirms=False)


def _confirmation(rate: float, bounds: Bounds) -> Ask:
    return Ask(rate, bounds.confirmation_s(rate), confirms=True)


def _rounded(rate: float) -> float:
    """To four digits, which a person can read and type."""
    return float(f"{rate:.4g}")
