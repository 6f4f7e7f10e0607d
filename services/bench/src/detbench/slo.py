"""Service level objectives: limits that the user sets, such as p99=200ms, and which of them a run misses."""

import re
from collections.abc import Sequence
from typing import get_args

from detbench.results.loads import Load, Miss, Objective
from detbench.results.sweep import Memory

FIGURES: tuple[str, ...] = get_args(Objective.model_fields["figure"].annotation)

# To the unit of `Objective.limit`.
_UNITS = {
    "errors": {"%": 0.01},
    "memory": {"MB": 1.0, "GB": 1e3},
} | {latency: {"ms": 1.0, "s": 1e3} for latency in ("p50", "p90", "p99", "p99.9", "max")}
_FORM = re.compile(r"\s*([a-z0-9.]+)\s*<?=\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-z]+|%)\s*", re.IGNORECASE)


def objective(text: str) -> Objective:
    """Read a limit: "p99=200ms", "max=1.5s", "errors=0.1%", "memory=1500MB".

    Raises:
        ValueError: it is none; the message says what there is.
    """
    form = _FORM.fullmatch(text)
    if form is None or form[1] not in _UNITS:
        raise ValueError(
            f"{text!r} is no limit such as p99=200ms, errors=0.1% or memory=1500MB; of {', '.join(_UNITS)}"
        )
    figure, number, unit = form.groups()
    factors = _UNITS[figure]
    if unit not in factors:
        raise ValueError(f"{text!r}: {figure} is in {' or '.join(factors)}")
    return Objective.model_validate({"figure": figure, "limit": float(number) * factors[unit]})


def missed(load: Load | None, memory: Memory | None, slo: Sequence[Objective]) -> list[Miss]:
    """The limits that a run does not hold. What was not measured is missed.

    An error is a request that failed or was dropped. A percentile counts as it was seen, certain or not: whether it is
    certain is a question of the verdict.
    """
    seen = [(each, figure_of(each, load, memory)) for each in slo]
    return [Miss(objective=each, seen=value) for each, value in seen if value is None or not value <= each.limit]


def figure_of(each: Objective, load: Load | None, memory: Memory | None) -> float | None:
    """The figure that a limit is of, in its unit; None where it was not measured."""
    if load is None or load.issued == 0:
        return None
    if each.figure == "errors":
        return (load.failed + load.dropped) / load.issued
    if each.figure == "memory":
        return memory.peak_mb if memory else None
    if load.latency is None:
        return None
    return load.latency.max_ms if each.figure == "max" else load.latency.percentiles()[each.figure].value_ms
