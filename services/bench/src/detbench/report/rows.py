"""The rows that every exporter shows: one per implementation and number of users."""

from collections.abc import Sequence
from dataclasses import dataclass

from detbench.results import Comparison, Run, Sweep

BASELINE = "baseline"
NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class Row:
    """One run with the comparison of its implementation. `speedup` is RPS over baseline's at as many users."""

    run: Run
    comparison: Comparison | None
    speedup: float | None

    @property
    def gate(self) -> str:
        """Whether the answers are the reference's: passed, failed, or n/a when they were not compared."""
        if self.comparison is None:
            return NOT_APPLICABLE
        return "passed" if self.comparison.gate.passed else "failed"

    @property
    def wrong(self) -> bool:
        """Whether the answers are known not to be the reference's."""
        return self.comparison is not None and not self.comparison.gate.passed

    def cells(self) -> tuple[str, ...]:
        """Text under each of `COLUMNS`."""
        run, load = self.run, self.run.load
        latency = load.latency if load else None
        error = self.comparison.overall if self.comparison else None
        peak = run.vram.peak_mb if run.vram else None
        return (
            run.implementation,
            str(run.users),
            run.status.replace("_", " "),
            f"{load.rps:.3g}" if run.status == "ok" and load else "–",
            f"{self.speedup:.2f}×" if self.speedup is not None else "–",
            *(milliseconds(v) for v in ((latency.p50_ms, latency.p90_ms, latency.p99_ms) if latency else (None,) * 3)),
            NOT_APPLICABLE if peak is None else f"{peak:.0f}",
            NOT_APPLICABLE if error is None else scientific(error.boxes_mse),
            NOT_APPLICABLE if error is None else scientific(error.scores_mse),
            NOT_APPLICABLE if error is None else f"{error.labels_accuracy:.4f}",
            self.gate,
        )


@dataclass(frozen=True)
class Column:
    """Heading of a column, what it means, and whether it holds numbers."""

    heading: str
    meaning: str
    numeric: bool = True


COLUMNS = (
    Column("implementation", "way of running the models", numeric=False),
    Column("users", "clients at once, each with one request at a time"),
    Column("status", "ok, failed or not run", numeric=False),
    Column("RPS", "successful requests per second; a request is one image through every model of the set"),
    Column("vs baseline", "RPS over baseline's with as many users"),
    Column("p50 (ms)", "half of the requests took at most this long, seen by the client"),
    Column("p90 (ms)", "9 of 10 requests took at most this long"),
    Column("p99 (ms)", "99 of 100 requests took at most this long"),
    Column("VRAM peak (MB)", "most GPU memory that torch had allocated, this implementation alone being loaded"),
    Column("boxes MSE (px²)", "mean squared error of box coordinates against the reference, 0 being equal"),
    Column("scores MSE", "mean squared error of scores against the reference"),
    Column("labels accuracy", "share of detections with the reference's label"),
    Column("gate", "passed: the reference's answers, but for float32 rounding", numeric=False),
)


def rows_of(sweep: Sweep) -> list[Row]:
    """All rows, in the order of the runs."""
    baseline = {
        run.users: run.load.rps for run in sweep.runs if _measured(run) and run.implementation == BASELINE and run.load
    }
    return [Row(run, sweep.comparison(run.implementation), _speedup(run, baseline)) for run in sweep.runs]


def best(rows: Sequence[Row]) -> Row | None:
    """The measured row of the highest RPS whose answers are not known to be wrong."""
    right = [row for row in rows if _measured(row.run) and not row.wrong]
    return max(right, key=lambda row: row.run.load.rps if row.run.load else 0.0, default=None)


def milliseconds(value: float | None) -> str:
    """A latency: one decimal below 100 ms, whole above."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def scientific(value: float) -> str:
    """An error: 0, or two digits and a power."""
    return "0" if value == 0 else f"{value:.1e}"


def _measured(run: Run) -> bool:
    return run.status == "ok" and run.load is not None


def _speedup(run: Run, baseline: dict[int, float]) -> float | None:
    if not _measured(run) or run.load is None or not baseline.get(run.users):
        return None
    return run.load.rps / baseline[run.users]
