"""The rows that every exporter shows: one per implementation and load."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from detbench.report.pooled import pooled
from detbench.results.loads import Load, OpenLoop, Times
from detbench.results.quality import Audit, Comparison
from detbench.results.sweep import BASELINE, CEILING, ImplementationInfo, Memory, Run, Sweep, deployment
from detbench.statistics.percentiles import Percentile
from detbench.statistics.ratios import Ratio, paired_ratio
from detbench.verdict import FEW_REQUESTS

NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class Column:
    """Heading of a column, what it means, and whether it holds numbers."""

    heading: str
    meaning: str
    numeric: bool = True


ERROR_COLUMNS = (
    Column("boxes MSE (px²)", "mean squared error of box coordinates against the reference, 0 being equal"),
    Column("scores MSE", "mean squared error of scores against the reference"),
    Column("labels accuracy", "share of detections with the reference's label"),
)
MEMORY_COLUMN = Column(
    "memory peak (MB)",
    "most memory of the server's process meanwhile, this implementation alone being loaded: on a GPU the device's, by "
    "NVML; on a CPU what is resident, imports and weights among it",
)
GATE_COLUMN = Column(
    "gate",
    "passed: the reference's answers, but for float32 rounding; tolerated: near them, and claimed to be no more",
    numeric=False,
)
AUDIT_COLUMN = Column(
    "right under load",
    "answers of the load that are the reference's, but for float32 rounding, of those that were compared with it; "
    "tolerated: all together near them, and claimed to be no more",
)
REPLICAS_COLUMN = Column("replicas", "processes of the cluster that serve it, each with a device or a share of one")
PER_REPLICA_COLUMN = Column("RPS per replica", "of the slowest and the fastest replica, in any round")
_SEEN = "seen by the client; in an open loop from the time when the request was to be sent"
_BEFORE = (
    Column("implementation", "way of running the models", numeric=False),
    Column(
        "load",
        "closed loop: users at once, each with one request at a time; open loop: requests at their times, whatever is "
        "answered",
        numeric=False,
    ),
    Column(
        "verdict",
        "valid; invalid: measured, but nothing may be decided by it, for the reasons below the table; failed; not run",
        numeric=False,
    ),
    Column("RPS", "successful requests per second; a request is one image through every model of the set"),
    Column(
        "vs baseline",
        "RPS over baseline's under the same load, with as many replicas; of several rounds, with the interval that "
        "holds it with 95 %",
    ),
)
_LATENCY = (
    Column("p50 (ms)", f"half of the requests took at most this long, {_SEEN}"),
    Column("p90 (ms)", f"9 of 10 requests took at most this long, {_SEEN}"),
    Column("p99 (ms)", f"99 of 100 requests took at most this long, {_SEEN}"),
)
_RARE_COLUMN = Column("p99.9 (ms)", f"999 of 1,000 requests took at most this long, {_SEEN}")
_SERVICE = (
    Column("service p50 (ms)", "half of the requests took at most this long from when they were sent"),
    Column("service p99 (ms)", "99 of 100 requests took at most this long from when they were sent"),
)
_SLO_COLUMN = Column("SLO", "whether the limits that were set are held, and what is beyond them", numeric=False)
_ENERGY_COLUMN = Column("energy (J/1,000)", "of the GPU's board for a thousand images, by NVML")
_AFTER = (MEMORY_COLUMN, *ERROR_COLUMNS, GATE_COLUMN)


@dataclass(frozen=True)
class Row:
    """The rounds of one run, pooled, with the comparison of its implementation.

    `exact` is whether the implementation claims the reference's answers, `speedup` its RPS over baseline's under the
    same load with as many replicas, `scaling` that over its own with one replica; with an interval where there are
    several rounds.
    """

    run: Run
    comparison: Comparison | None
    exact: bool
    speedup: Ratio | None
    scaling: Ratio | None

    @property
    def rps(self) -> float | None:
        """Successful requests per second; None where the run failed or was not made."""
        return self.run.load.rps if self.run.measured and self.run.load else None

    @property
    def gate(self) -> str:
        """See `gate_of`."""
        return gate_of(self.comparison)

    @property
    def right(self) -> bool:
        """Whether the answers are the reference's, or, where they were not compared, claimed to be; under load, too."""
        alone = self.exact if self.comparison is None else self.comparison.gate.passed
        return alone and (self.run.audit is None or self.run.audit.gate.passed)

    def cells(self, columns: Sequence[Column]) -> tuple[str, ...]:
        """Text under each of `columns`, which are those of `columns_of`."""
        run, load = self.run, self.run.load
        latency = load.latency if load else None
        service = load.service if load else None
        before = (
            run.implementation,
            str(run.offered),
            run.verdict.replace("_", " "),
            "–" if self.rps is None else f"{self.rps:.3g}",
            speedup(self.speedup),
        )
        texts = {
            **dict(zip(_BEFORE, before, strict=True)),
            REPLICAS_COLUMN: "–" if run.replicas is None else str(run.replicas),
            PER_REPLICA_COLUMN: per_replica(load),
            **dict(zip(_LATENCY, _percentiles(latency, "p50", "p90", "p99"), strict=True)),
            **dict(zip((_RARE_COLUMN,), _percentiles(latency, "p99.9"), strict=True)),
            **dict(zip(_SERVICE, _percentiles(service, "p50", "p99"), strict=True)),
            _SLO_COLUMN: "–" if run.implementation == CEILING else "; ".join(map(str, run.missed)) or "met",
            _ENERGY_COLUMN: "–" if run.joules_per_1000_images is None else f"{run.joules_per_1000_images:,.0f}",
            MEMORY_COLUMN: megabytes(run.memory.peak_mb if run.memory else None),
            **dict(zip(ERROR_COLUMNS, error_cells(self.comparison), strict=True)),
            GATE_COLUMN: self.gate,
            AUDIT_COLUMN: _right(run.audit),
        }
        return tuple(texts[column] for column in columns)


def columns_of(sweep: Sweep) -> tuple[Column, ...]:
    """The columns of a sweep's table.

    p99.9 is among them where it is certified in some run, the service time where some loop is open, as latency is never
    shown without it there, energy where a GPU tells it, what is right under load where some run was audited, and
    replicas where a cluster served.
    """
    latencies = [run.load.latency for run in sweep.runs if run.load and run.load.latency]
    rare = any(latency.p99_9.certified for latency in latencies)
    is_open = any(isinstance(run.offered, OpenLoop) for run in sweep.runs)
    slo = (_SLO_COLUMN,) if sweep.settings.slo else ()
    energy = (_ENERGY_COLUMN,) if any(run.joules_per_1000_images is not None for run in sweep.runs) else ()
    audit = (AUDIT_COLUMN,) if any(run.audit for run in sweep.runs) else ()
    latency = (*_LATENCY, *((_RARE_COLUMN,) if rare else ()), *(_SERVICE if is_open else ()))
    replicas = (REPLICAS_COLUMN, PER_REPLICA_COLUMN) if sweep.settings.replicas else ()
    return (*_BEFORE, *replicas, *latency, *slo, *energy, *_AFTER, *audit)


def doubt_lines(rows: Iterable[Row]) -> list[str]:
    """The reasons for the verdicts, and lesser doubts: a line each, but for what `uncertain_line` says of all."""
    return [
        f"{row.run.deployment}, {row.run.offered}: {doubt.message}; {doubt.remedy} ({doubt.code})"
        for row in rows
        for doubt in row.run.warnings
        if doubt.invalidates or doubt.code != FEW_REQUESTS
    ]


def uncertain_line(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """What the parentheses in a table mean, and what to do; empty where there are none."""
    headings = {column.heading for column in columns}
    needed: dict[str, int] = {}
    for row in rows:
        latency = row.run.load.latency if row.run.load else None
        for name, each in latency.percentiles().items() if latency else ():
            if not each.certified and f"{name} (ms)" in headings:
                needed[name] = each.needed
    if not needed:
        return ""
    needs = ", ".join(f"{name} {count:,}" for name, count in sorted(needed.items()))
    return (
        f"(In parentheses): uncertain, because the run had fewer requests than the percentile needs: {needs}. "
        "Raise --duration, or give --until."
    )


# Of the small table beside the results; `implementation_cells` fills it.
IMPLEMENTATION_COLUMNS = (
    Column("implementation", "way of running the models", numeric=False),
    Column("claims", "exact: the reference's answers; the reference itself makes them", numeric=False),
    Column("precision", "of the numbers that it calculates with", numeric=False),
    Column(
        "load (s)",
        "until it could serve, compiling among it, without what is shared with others: finding weights, imports",
    ),
    Column(
        "first load (s)",
        "the load that made what later ones find on disk: converted networks, choices, compiled code; – an earlier run "
        "had made it",
    ),
    Column("compile (s)", "of the first load, else of the load, what compiling took; – is none, or not known"),
    Column(
        "kernels per request",
        "GPU kernels that one request of one image launches, counted by torch's profiler; on a CPU torch's operators "
        "at the leaves",
    ),
    Column(
        "above empty (MB)",
        "part of the memory peak that the same process did not take before anything was loaded; n/a with --host",
    ),
)


def rows_of(sweep: Sweep) -> list[Row]:
    """All rows, in the order of the runs; the rounds of a run are pooled."""
    rounds: dict[tuple[str, str], list[Run]] = {}
    for run in sweep.runs:
        rounds.setdefault((run.deployment, str(run.offered)), []).append(run)
    exact = {info.name for info in sweep.implementations if info.exact}

    def row(runs: list[Run]) -> Row:
        name, replicas, offered = runs[0].implementation, runs[0].replicas, str(runs[0].offered)
        baseline = rounds.get((deployment(BASELINE, replicas), offered), [])
        alone = rounds.get((deployment(name, 1), offered), [])
        return Row(
            run=pooled(runs, sweep.settings.slo),
            comparison=sweep.comparison(name),
            exact=name in exact,
            speedup=None if name == CEILING else _ratio(runs, baseline),
            scaling=_ratio(runs, alone),
        )

    return list(map(row, rounds.values()))


def implementation_cells(info: ImplementationInfo, memories: Iterable[Memory | None]) -> tuple[str, ...]:
    """Text under each of `IMPLEMENTATION_COLUMNS`.

    Args:
        memories: of all that was measured of it; its highest peak counts.
    """
    above = [memory.above_empty_mb for memory in memories if memory and memory.above_empty_mb is not None]
    return (
        info.name,
        "reference" if info.name == BASELINE else "exact" if info.exact else "not exact",
        info.precision,
        duration(info.load_s),
        duration(info.first_load_s),
        duration(info.compile_s),
        NOT_APPLICABLE if info.kernels_per_request is None else f"{info.kernels_per_request:,}",
        megabytes(max(above, default=None)),
    )


def implementation_rows(sweep: Sweep) -> list[tuple[str, ...]]:
    """The small table of a sweep: the cells of each of its implementations."""
    return [
        implementation_cells(info, (run.memory for run in sweep.runs if run.implementation == info.name))
        for info in sweep.implementations
    ]


def gate_of(comparison: Comparison | None) -> str:
    """Whether the answers are the reference's: passed, tolerated, failed, or n/a when they were not compared."""
    return NOT_APPLICABLE if comparison is None else comparison.verdict


def error_cells(comparison: Comparison | None) -> tuple[str, ...]:
    """Text under each of `ERROR_COLUMNS`."""
    if comparison is None:
        return (NOT_APPLICABLE,) * len(ERROR_COLUMNS)
    error = comparison.overall
    return scientific(error.boxes_mse), scientific(error.scores_mse), f"{error.labels_accuracy:.4f}"


def ground_truth_notes(comparisons: Iterable[Comparison]) -> list[str]:
    """Why there is no mAP, and what does not count in it: each line once."""
    return list(dict.fromkeys(note for comparison in comparisons for note in comparison.ground_truth_notes))


def duration(value: float | None) -> str:
    """A duration: one decimal below 100, whole above; ∞ where something failed."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def percentile(value: Percentile) -> str:
    """A percentile in ms: in parentheses where it is uncertain."""
    text = duration(value.value_ms)
    return text if value.certified else f"({text})"


def megabytes(value: float | None) -> str:
    """Memory in MB, whole."""
    return NOT_APPLICABLE if value is None else f"{value:,.0f}"


def scientific(value: float) -> str:
    """An error: 0, or two digits and a power."""
    return "0" if value == 0 else f"{value:.1e}"


def speedup(ratio: Ratio | None) -> str:
    """A ratio, with its interval where there is one."""
    if ratio is None:
        return "–"
    interval = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.value:.2f}×{interval}"


def per_replica(load: Load | None) -> str:
    """The requests per second of the slowest and the fastest replica."""
    rates = load.replicas_rps.values() if load else ()
    return "–".join(dict.fromkeys(f"{rate:.3g}" for rate in (min(rates), max(rates)))) if rates else "–"


def _right(audit: Audit | None) -> str:
    if audit is None:
        return NOT_APPLICABLE
    return f"{audit} (tolerated)" if audit.verdict == "tolerated" else str(audit)


def _ratio(runs: Sequence[Run], others: Sequence[Run]) -> Ratio | None:
    """Of the rates, in the rounds that both have. Of the others themselves it is 1, with no doubt about it."""
    ours, theirs = _rps_by_round(runs), _rps_by_round(others)
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    if runs is others:
        both = both[:1]
    return paired_ratio([ours[number] for number in both], [theirs[number] for number in both])


def _rps_by_round(runs: Sequence[Run]) -> dict[int, float]:
    return {run.round: run.load.rps for run in runs if run.measured and run.load and run.load.rps > 0}


def _percentiles(times: Times | None, *names: str) -> tuple[str, ...]:
    return tuple("–" if times is None else percentile(times.percentiles()[name]) for name in names)
