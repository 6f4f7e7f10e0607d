"""How much each step of an ablation is worth: pure arithmetic on latencies."""

import math
from collections.abc import Sequence

from detbench.ablation_results import Gain, Step
from detbench.results import BASELINE


def gains(latencies: Sequence[float | None], right: Sequence[bool], baseline: float | None) -> list[Gain | None]:
    """What each step of a chain is worth.

    Factors multiply, so their logarithms add up: the share of a step is log(factor) / log(speed-up of the fastest step
    that is right). Down to that one, shares add up to 1; later steps add to it or take from it.

    Args:
        latencies: of each step in the chain's order, in any unit; None was not measured, and its successor is
            compared with its predecessor.
        right: whether each step gives the right answers.
        baseline: latency of the first link, in the same unit; None where it was not measured: no speed-ups, no shares.

    Returns:
        One gain per step; None for a step that was not measured. Shares are None where nothing right is faster than
        the baseline.
    """
    candidates = [latency for latency, good in zip(latencies, right, strict=True) if good and latency is not None]
    total = math.log(baseline / min(candidates)) if baseline is not None and candidates else 0.0
    found: list[Gain | None] = []
    before: float | None = None
    for latency in latencies:
        if latency is None:
            found.append(None)
            continue
        factor = before / latency if before is not None else None
        share = math.log(factor) / total if factor is not None and total > 0 else None
        found.append(Gain(speedup=baseline / latency if baseline is not None else None, factor=factor, share=share))
        before = latency
    return found


def attributed(steps: Sequence[Step], batch_sizes: Sequence[int]) -> list[Step]:
    """The steps with the gain of every timing, among the timings of its batch size."""
    for batch_size in batch_sizes:
        timings = [step.timing(batch_size) for step in steps]
        latencies = [timing.median_ms if timing else None for timing in timings]
        baseline = next((v for v, s in zip(latencies, steps, strict=True) if s.implementation.name == BASELINE), None)
        worth = gains(latencies, [step.right for step in steps], baseline)
        steps = [_with_gain(step, batch_size, gain) for step, gain in zip(steps, worth, strict=True)]
    return list(steps)


def _with_gain(step: Step, batch_size: int, gain: Gain | None) -> Step:
    timings = [t.model_copy(update={"gain": gain}) if t.batch_size == batch_size else t for t in step.timings]
    return step.model_copy(update={"timings": timings})
