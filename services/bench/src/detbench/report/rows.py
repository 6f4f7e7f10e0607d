"""The rows that every exporter shows: one per implementation and number of users."""

from collections.abc import Iterable
from dataclasses import dataclass

from detbench.results import BASELINE, Comparison, ImplementationInfo, Memory, Run, Sweep

NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class Row:
    """One run with the comparison of its implementation.

    `exact` is whether the implementation claims the reference's answers, `speedup` its RPS over baseline's at as many
    users.
    """

    run: Run
    comparison: Comparison | None
    exact: bool
    speedup: float | None

    @property
    def rps(self) -> float | None:
        """Successful requests per second; None where the run failed or was not made."""
        return self.run.load.rps if self.run.status == "ok" and self.run.load else None

    @property
    def gate(self) -> str:
        """See `gate_of`."""
        return gate_of(self.comparison)

    @property
    def right(self) -> bool:
        """Whether the answers are the reference's, or, where they were not compared, claimed to be."""
        return self.exact if self.comparison is None else self.comparison.gate.passed

    def cells(self) -> tuple[str, ...]:
        """Text under each of `COLUMNS`."""
        run = self.run
        latency = run.load.latency if run.load else None
        return (
            run.implementation,
            str(run.users),
            run.status.replace("_", " "),
            "–" if self.rps is None else f"{self.rps:.3g}",
            f"{self.speedup:.2f}×" if self.speedup is not None else "–",
            *(duration(v) for v in ((latency.p50_ms, latency.p90_ms, latency.p99_ms) if latency else (None,) * 3)),
            megabytes(run.memory.peak_mb if run.memory else None),
            *error_cells(self.comparison),
            self.gate,
        )


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
COLUMNS = (
    Column("implementation", "way of running the models", numeric=False),
    Column("users", "clients at once, each with one request at a time"),
    Column("status", "ok, failed or not run", numeric=False),
    Column("RPS", "successful requests per second; a request is one image through every model of the set"),
    Column("vs baseline", "RPS over baseline's with as many users"),
    Column("p50 (ms)", "half of the requests took at most this long, seen by the client"),
    Column("p90 (ms)", "9 of 10 requests took at most this long"),
    Column("p99 (ms)", "99 of 100 requests took at most this long"),
    MEMORY_COLUMN,
    *ERROR_COLUMNS,
    GATE_COLUMN,
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
    """All rows, in the order of the runs."""
    baseline = {
        run.users: run.load.rps for run in sweep.runs if _measured(run) and run.implementation == BASELINE and run.load
    }
    exact = {info.name for info in sweep.implementations if info.exact}
    return [
        Row(run, sweep.comparison(run.implementation), run.implementation in exact, _speedup(run, baseline))
        for run in sweep.runs
    ]


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
    """A duration: one decimal below 100, whole above."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def megabytes(value: float | None) -> str:
    """Memory in MB, whole."""
    return NOT_APPLICABLE if value is None else f"{value:,.0f}"


def scientific(value: float) -> str:
    """An error: 0, or two digits and a power."""
    return "0" if value == 0 else f"{value:.1e}"


def _measured(run: Run) -> bool:
    return run.status == "ok" and run.load is not None


def _speedup(run: Run, baseline: dict[int, float]) -> float | None:
    if not _measured(run) or run.load is None or not baseline.get(run.users):
        return None
    return run.load.rps / baseline[run.users]
