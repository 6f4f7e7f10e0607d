"""The sentence that an ablation is opened for."""

from detbench.report.answer import memory_clause
from detbench.report.rows import duration
from detbench.results.ablation import Ablation
from detbench.results.sweep import BASELINE


def ablation_answer(ablation: Ablation) -> str:
    """The sentence that the page is opened for, about the smallest batch size."""
    size = ablation.settings.batch_sizes[0]
    measured = [(step, timing) for step in ablation.steps if (timing := step.timing(size)) is not None]
    right = [(step, timing) for step, timing in measured if step.right]
    if not right:
        return "Nothing was measured whose answers are right."
    step, timing = min(right, key=lambda row: row[1].median_ms)
    name = step.implementation.name
    claims = "exact row" if step.comparison else "row that claims to be exact (it was not compared)"
    answer = f"The fastest {claims} is {name}: {duration(timing.median_ms)} ms for {images(size)}"
    gain = timing.gain
    if gain is not None and gain.speedup is not None and name != BASELINE:
        answer += f", {gain.speedup:.2f} times baseline"
    answer += f"{memory_clause(timing.memory)}."
    shares = {
        each.label: t.gain.share for each, t in measured if t.gain and t.gain.on_path and t.gain.share is not None
    }
    if not shares:
        return answer
    most = max(shares, key=lambda label: shares[label])
    return f"{answer} Most of it comes from “{most.removeprefix('+ ')}”: {100 * shares[most]:.0f} % of its logarithm."


def images(count: int) -> str:
    """A number of images in words."""
    return "1 image" if count == 1 else f"a batch of {count} images"
