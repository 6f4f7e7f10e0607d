"""How much each row of an ablation is worth: pure arithmetic on latencies."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from detbench.results.ablation import Gain, Step
from detbench.results.sweep import BASELINE

_WORTH_SHARING = math.log(1.1)
"""Of less than a tenth in all, shares would be a hundred percent of noise here and minus five hundred there."""


@dataclass(frozen=True)
class Row:
    """A row that was measured: its latency in any unit, above 0, and whether its answers are right."""

    latency: float
    right: bool


def gains(rows: Mapping[str, Row], adds_to: Mapping[str, str | None]) -> dict[str, Gain]:
    """What each row of an ablation is worth.

    A row is compared with the one that it adds a technique to; with that one's own where it was not measured, or is
    wrong while the row is right: what a wrong row skips must not count for or against a right one. A row that adds to
    none is compared with the fastest right row before it.

    Factors multiply, so their logarithms add up: the share of a row is log(factor) / log(speed-up of the fastest right
    row). Of the rows on the path from baseline to that one shares add up to 1; each other row's says what it would
    add instead of them, or on top.

    Args:
        rows: those that were measured, by name.
        adds_to: every row's name, in the order of the ablation, to the name of the one it adds to, which stands before
            it: a tree, or several.

    Returns:
        The gain of each of `rows`. Shares are None where baseline was not measured, or nothing right is faster by a
        tenth at least.
    """
    places = {name: place for place, name in enumerate(adds_to)}

    def ancestors(name: str) -> Iterator[str]:
        # Only upwards, so that a server whose rows add to each other in a circle ends here, too.
        while (parent := adds_to.get(name)) is not None and places.get(parent, -1) < places[name]:
            yield parent
            name = parent
        before = [each for each in rows if rows[each].right and places[each] < places.get(name, 0)]
        if before:
            yield min(before, key=lambda each: rows[each].latency)

    def versus(name: str) -> str | None:
        fit = (each for each in ancestors(name) if each in rows and (rows[each].right or not rows[name].right))
        return next(fit, None)

    compared = {name: versus(name) for name in rows}
    path: list[str] = []  # from the fastest right row back to where it comes from
    link = min((name for name in rows if rows[name].right), key=lambda name: rows[name].latency, default=None)
    while link is not None:
        path.append(link)
        link = compared[link]
    from_baseline = path[-1:] == [BASELINE]
    total = math.log(rows[BASELINE].latency / rows[path[0]].latency) if from_baseline else 0.0

    def gain(name: str) -> Gain:
        latency, parent = rows[name].latency, compared[name]
        factor = rows[parent].latency / latency if parent is not None else None
        return Gain(
            speedup=rows[BASELINE].latency / latency if BASELINE in rows else None,
            versus=parent,
            factor=factor,
            share=math.log(factor) / total if factor is not None and total >= _WORTH_SHARING else None,
            on_path=from_baseline and name in path,
        )

    return {name: gain(name) for name in rows}


def attributed(steps: Sequence[Step], adds_to: Mapping[str, str | None], batch_sizes: Sequence[int]) -> list[Step]:
    """The steps with the gain of every timing, among the timings of its batch size; `adds_to` as `gains` takes it."""
    for batch_size in batch_sizes:
        rows = {
            step.implementation.name: Row(timing.median_ms, step.right)
            for step in steps
            if (timing := step.timing(batch_size)) is not None
        }
        worth = gains(rows, adds_to)
        steps = [_with_gain(step, batch_size, worth.get(step.implementation.name)) for step in steps]
    return list(steps)


def _with_gain(step: Step, batch_size: int, gain: Gain | None) -> Step:
    timings = [t.model_copy(update={"gain": gain}) if t.batch_size == batch_size else t for t in step.timings]
    return step.model_copy(update={"timings": timings})
