"""The audit of a run: its answers compared with the reference, and what is to be doubted or wrong after that."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from detbench.load.answers import read_answers
from detbench.quality.audit import audit
from detbench.quality.outputs import ImageOutput
from detbench.results.quality import Audit, CacheCheck, Comparison
from detbench.results.sweep import ImplementationInfo, MeasurementWarning, Run
from detbench.verdict import verdict_of

# As the contract says.
_MOST_BY_REPEATING = 1.1


def audited(run: Run, answers_dir: Path, reference: Sequence[ImageOutput], info: ImplementationInfo) -> Run:
    """`run` with its audit, and the doubts and the verdict that follow from it and from the search for a cache.

    Args:
        run: one that was measured.
        answers_dir: what its load generator has written there.
        reference: outputs of `baseline` for the photos that were sent.
        info: the implementation that was loaded.
    """
    assert run.load is not None
    found = audit(reference, read_answers(answers_dir), answered=run.load.answered, exact=info.exact)
    doubts = [*run.warnings, *_wrong(found, info.exact), *_partial(found), *_cached(info.cache)]
    return run.model_copy(update={"audit": found, "warnings": doubts, "verdict": verdict_of(doubts)})


def wrong_under_load(run: Run, exact: bool, alone: Comparison | None) -> str | None:
    """Why the audit of `run` is a problem; None where it is none, or there is no audit.

    It is one where the implementation claims to be exact and is not, or claims less and is near enough to the reference
    only when it is asked alone.

    Args:
        run: one that was measured.
        exact: whether its implementation claims the reference's answers.
        alone: the comparison of the same implementation without load, where there is one.
    """
    found = run.audit
    if found is None:
        return None
    if exact:
        return None if found.gate.passed else f"claims to be exact, and {_what_is_wrong(found)}"
    if alone is None or alone.verdict == "failed" or found.verdict != "failed":
        return None
    reasons = (found.tolerance or found.gate).reasons
    return f"is near the reference when asked alone, and not under load: {'; '.join(reasons)}; {_what_is_wrong(found)}"


def _what_is_wrong(found: Audit) -> str:
    if found.right == found.audited:  # each within its limits, all together not
        return f"its answers under load are not the reference's: {'; '.join(found.gate.reasons)}"
    wrong = found.audited - found.right
    whose = [
        f"{each.audited - each.right:,} of {each.audited:,} by replica {name}"
        for name, each in found.replicas.items()
        if each.right < each.audited
    ]
    by = f" ({', '.join(whose)})" if whose else ""
    return f"{wrong:,} of {found.audited:,} answers under load are not the reference's{by}: {'; '.join(found.reasons)}"


def _wrong(found: Audit, exact: bool) -> Iterator[MeasurementWarning]:
    if exact and not found.gate.passed:
        yield MeasurementWarning(
            code="wrong-under-load",
            message=_what_is_wrong(found),
            remedy="its speed is not that of right answers; look for what requests share while several are in work: "
            "buffers, the order of a batch",
            invalidates=True,
        )


def _partial(found: Audit) -> Iterator[MeasurementWarning]:
    if found.audited < found.answers:
        yield MeasurementWarning(
            code="partly-audited",
            message=f"{found.audited:,} of {found.answers:,} answers were compared with the reference: there were more "
            "different ones than are kept",
            remedy="lower --duration or --max-images where all are to be compared",
            invalidates=False,
        )


def _cached(cache: CacheCheck | None) -> Iterator[MeasurementWarning]:
    if cache is not None and cache.low is not None and cache.low > _MOST_BY_REPEATING:
        yield MeasurementWarning(
            code="cached-answers",
            message=f"an image that is sent again at once is answered {cache.ratio:.3g} times as fast as the first "
            f"time ({cache.low:.3g} to {cache.high:.3g})",
            remedy="a load repeats its photos, so these figures may be those of a cache: switch it off",
            invalidates=True,
        )
