"""Two reports side by side: which figures differ by more than the noise of their rounds."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from detbench.errors import DetbenchError
from detbench.report.rows import Column
from detbench.results.loads import Load
from detbench.results.sweep import Run, Sweep
from detbench.statistics.ratios import Ratio, differs, reports_ratio

COLUMNS = (
    Column("implementation", "what was measured, in how many replicas where it was a cluster", numeric=False),
    Column("load", "users of a closed loop, or the schedule of an open one", numeric=False),
    Column("figure", "which figure", numeric=False),
    Column("A", "in the first report; the geometric mean of its rounds"),
    Column("B", "in the second report"),
    Column("B / A", "their ratio, and the interval that holds the true one with 98 %"),
    Column("verdict", "whether the difference is larger than the noise", numeric=False),
)

# What of a load is compared; None where it has none, or none that is certain.
_FIGURES: dict[str, Callable[[Load], float | None]] = {
    "RPS": lambda load: load.rps,
    "p50 (ms)": lambda load: load.latency.p50.value_ms if load.latency else None,
    "p99 (ms)": lambda load: load.latency.p99.value_ms if load.latency and load.latency.p99.certified else None,
}
_MORE_IS_BETTER = {"RPS"}


@dataclass(frozen=True)
class Difference:
    """One figure of one deployment under one load in two reports, each with a value per round.

    `differs` is None where there are too few rounds to tell.
    """

    deployment: str
    load: str
    figure: str
    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def ratio(self) -> Ratio:
        """B over A."""
        return reports_ratio(self.b, self.a)

    @property
    def differs(self) -> bool | None:
        """Whether it differs by more than the noise; None where there are too few rounds to tell."""
        return differs(self.b, self.a)

    @property
    def verdict(self) -> str:
        """The same in words."""
        if self.differs is None:
            return "cannot tell"
        if not self.differs:
            return "no difference"
        more = self.ratio.value > 1
        return "better" if more == (self.figure in _MORE_IS_BETTER) else "worse"

    def cells(self) -> tuple[str, ...]:
        """Text under each of `COLUMNS`."""
        means = (f"{reports_ratio(rounds, [1.0]).value:,.4g}" for rounds in (self.a, self.b))
        return (self.deployment, self.load, self.figure, *means, str(self.ratio), self.verdict)


def differences(a: Sweep, b: Sweep, other_machine: bool = False) -> list[Difference]:
    """Every figure that both sweeps have, in the order of the first.

    Args:
        a: the first one, which `b` is compared with.
        b: the second one.
        other_machine: whether two machines may be compared.

    Raises:
        DetbenchError: they measured different work, or on different machines, or nothing that both have.
    """
    _check(a, b, other_machine)
    found = [
        Difference(deployment, load, figure, ours, theirs)
        for deployment, load in _loads(a.runs)
        for figure in _FIGURES
        if (ours := _rounds(a, deployment, load, figure)) and (theirs := _rounds(b, deployment, load, figure))
    ]
    if not found:
        raise DetbenchError(
            "the two runs have no implementation under the same load in common; there is nothing to compare"
        )
    return found


def advice(found: Iterable[Difference]) -> str:
    """What to do where the rounds do not tell enough; empty where they do."""
    if any(each.differs is None for each in found):
        return "One round knows nothing of its own noise: measure both with --repeats 5."
    return ""


def _check(a: Sweep, b: Sweep, other_machine: bool) -> None:
    machines = [(sweep.environment.device_name, sweep.environment.cpu_count) for sweep in (a, b)]
    if machines[0] != machines[1] and not other_machine:
        names = " and ".join(f"{name} ({cores} cores)" for name, cores in machines)
        raise DetbenchError(
            f"measured on two machines, {names}: not the software alone differs; --other-machine compares all the same"
        )
    for what, ours, theirs in (
        ("model sets", a.settings.model_set, b.settings.model_set),
        ("weights", [w.fingerprint for w in a.weights], [w.fingerprint for w in b.weights]),
        ("datasets", (a.settings.dataset, a.settings.images), (b.settings.dataset, b.settings.images)),
    ):
        if ours != theirs:
            raise DetbenchError(
                f"measured with different {what}: {_shown(ours)} and {_shown(theirs)}; measure both with the same"
            )


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(each)[:12] for each in value)
    return f"{value[1]} images of {value[0]}" if isinstance(value, tuple) else str(value)


def _loads(runs: Iterable[Run]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((run.deployment, str(run.offered)) for run in runs))


def _rounds(sweep: Sweep, deployment: str, offered: str, figure: str) -> tuple[float, ...]:
    loads = (
        run.load
        for run in sweep.runs
        if run.measured and (run.deployment, str(run.offered)) == (deployment, offered) and run.load
    )
    values = (_FIGURES[figure](load) for load in loads)
    return tuple(value for value in values if value and math.isfinite(value))
