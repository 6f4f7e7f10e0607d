"""A cluster is as right as its worst replica: the judgements of all replicas as one, and weights that are others."""

from collections.abc import Iterable, Mapping
from typing import get_args

from detbench.api.schemas import ModelWeights, ReplicaInfo
from detbench.results.quality import Comparison, Gate, Judgement

_FROM_BEST_TO_WORST: tuple[str, ...] = get_args(Judgement)


def gate_of_all(gates: Mapping[str | None, Gate]) -> Gate:
    """Passed where the gate of every replica is; each reason names the replicas that it is of.

    Args:
        gates: by the name of the replica; by None of a server that is no cluster, whose reasons stay as they are.
    """
    whose: dict[str, list[str]] = {}
    for replica, gate in gates.items():
        for reason in gate.reasons:
            whose.setdefault(reason, []).extend([replica] if replica else [])
    return Gate(
        passed=all(gate.passed for gate in gates.values()),
        reasons=[f"{named(names)}: {reason}" if names else reason for reason, names in whose.items()],
    )


def named(replicas: Iterable[str]) -> str:
    """Replicas in words: "replica a", "replicas a, b"."""
    names = list(replicas)
    return f"replica{'s'[: len(names) > 1]} {', '.join(names)}"


def worst_of(comparisons: Mapping[str | None, Comparison]) -> Comparison:
    """The comparison of a cluster: with the figures of the worst replica, and the reasons of all that failed.

    Args:
        comparisons: of the same images, as `gate_of_all` takes gates.
    """
    replica, worst = max(comparisons.items(), key=lambda item: _badness(item[1]))
    tolerances = {name: each.tolerance for name, each in comparisons.items() if each.tolerance is not None}
    return worst.model_copy(
        update={
            "replica": replica,
            "replicas": {name: each.verdict for name, each in comparisons.items() if name},
            "gate": gate_of_all({name: each.gate for name, each in comparisons.items()}),
            "tolerance": gate_of_all(tolerances) if tolerances else None,
        }
    )


def other_weights(replicas: Iterable[ReplicaInfo], expected: Iterable[ModelWeights]) -> list[str]:
    """A line about each replica that holds other weights than those expected, by their fingerprints."""
    fingerprints = {model.model_name: model.fingerprint for model in expected}
    found = []
    for each in replicas:
        others = [
            f"{name} {fingerprint[:12]}, not {fingerprints[name][:12]}"
            for name, fingerprint in each.weights.items()
            if fingerprints.get(name, fingerprint) != fingerprint
        ]
        if others:
            place = f"process {each.pid} at {each.address}"
            found.append(f"replica {each.replica} ({place}) has other weights: {', '.join(others)}")
    return found


def _badness(comparison: Comparison) -> tuple[int, float, float]:
    error = comparison.overall
    return _FROM_BEST_TO_WORST.index(comparison.verdict), error.boxes_mse, error.scores_mse
