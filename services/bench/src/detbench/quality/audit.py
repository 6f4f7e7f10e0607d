"""The audit of a load: whether its answers are the reference's, each compared with that to its photo."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from detbench.api.schemas import ModelDetections
from detbench.quality.compare import beyond_rounding, gates, sums_of
from detbench.quality.matching import ErrorSums, total
from detbench.quality.outputs import ImageOutput
from detbench.quality.replicas import gate_of_all, named
from detbench.results.quality import Audit, AuditedReplica, Gate

_SHOWN = 3


def audit(
    reference: Sequence[ImageOutput],
    answers: Iterable[tuple[str, list[ModelDetections], Mapping[str | None, int]]],
    *,
    answered: int,
    exact: bool,
) -> Audit:
    """Compare answers with the reference's.

    One is right where every detection has a partner with its label, and differs from it by less than the gate's largest
    differences. The gate's means are for all answers together: over the few detections of one photo they are chance. Of
    a cluster they are for those of each replica: one that is wrong must not disappear among many that are right.

    Args:
        reference: outputs of `baseline`, one per photo.
        answers: the SHA-256 of a photo, different detections in it, and how often they came by the replica that gave
            them, by None without a cluster. Answers to a photo that the reference lacks are not audited.
        answered: how often any answer came, those that are not among `answers` too.
        exact: whether the implementation claims the reference's answers.
    """
    known = {output.sha256: output for output in reference}
    totals: defaultdict[str | None, defaultdict[str, ErrorSums]] = defaultdict(lambda: defaultdict(ErrorSums))
    audited: Counter[str | None] = Counter()
    right: Counter[str | None] = Counter()
    distinct = 0
    reasons: list[str] = []
    for photo, detections, times in answers:
        if (ours := known.get(photo)) is None:
            continue
        theirs = ours.model_copy(update={"detections": detections})
        sums = _by_model(ours, theirs)
        audited.update(times)
        distinct += 1
        if not (wrong := _wrong(sums)):
            right.update(times)
        elif len(reasons) < _SHOWN:
            other = _answer_to(theirs, reference)
            reasons.append(f"{ours.image}{_by(times)}: {f'the answer to {other}' if other else wrong}")
        for replica, count in times.items():
            for name, each in sums.items():
                totals[replica][name] = total([totals[replica][name], each.repeated(count)])
    gate, tolerance = _judged(totals, exact)
    if not audited:  # the photos were changed after the reference was read
        gate = Gate(passed=False, reasons=["no answer was compared"])
        tolerance = None if exact else gate
    return Audit(
        answers=answered,
        audited=audited.total(),
        distinct=distinct,
        right=right.total(),
        reasons=reasons,
        replicas={
            replica: AuditedReplica(audited=audited[replica], right=right[replica])
            for replica in sorted(replica for replica in audited if replica)
        },
        gate=gate,
        tolerance=tolerance,
    )


def _judged(totals: Mapping[str | None, Mapping[str, ErrorSums]], exact: bool) -> tuple[Gate, Gate | None]:
    """The gate and the tolerance, by the sums of each replica and model."""
    judged = {
        replica: gates({name: each.figures() for name, each in sums.items()}, exact, ground_truth={})
        for replica, sums in totals.items()
    }
    tolerances = {replica: tolerance for replica, (_, tolerance) in judged.items() if tolerance is not None}
    gate = gate_of_all({replica: gate for replica, (gate, _) in judged.items()})
    return gate, gate_of_all(tolerances) if tolerances else None


def _by(replicas: Iterable[str | None]) -> str:
    """By which replicas, in words; empty without a cluster."""
    names = sorted(replica for replica in replicas if replica)
    return f" by {named(names)}" if names else ""


def _by_model(ours: ImageOutput, theirs: ImageOutput) -> dict[str, ErrorSums]:
    return {each.model_name: sums_of([ours], [theirs], each.model_name) for each in ours.detections}


def _wrong(sums: Mapping[str, ErrorSums]) -> str:
    """What is wrong with one answer, in the detections of the first model that has any; empty where nothing is."""
    for name, each in sums.items():
        if reasons := list(beyond_rounding(each.figures())):
            return f"{name}: {', '.join(reasons)}"
    return ""


def _answer_to(answer: ImageOutput, reference: Sequence[ImageOutput]) -> str:
    """The name of another photo whose reference this is; empty where there is none, or it has no detection to tell."""
    for other in reference:
        if other.sha256 != answer.sha256:
            sums = _by_model(other, answer)
            if not _wrong(sums) and any(each.pairs for each in sums.values()):
                return other.image
    return ""
