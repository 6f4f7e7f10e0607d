"""results.csv: every figure with all its digits, a row per implementation and number of users."""

import csv
import io

from detbench.report.rows import Row, rows_of
from detbench.results import Comparison, ErrorFigures, Latency, Load, Memory, Sweep

_STAGES = ("receive", "wait", "decode", "preprocess", "queue", "forward", "postprocess", "serialise")
_LOAD = ("window_s", "requests", "failures", "rps", "batch_size_mean", "generator_cpu_percent")


def to_csv(sweep: Sweep) -> str:
    """The whole sweep as CSV; what was not measured is empty."""
    out = io.StringIO()
    records = [_record(sweep, row) for row in rows_of(sweep)]
    if records:
        writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return out.getvalue()


def _record(sweep: Sweep, row: Row) -> dict[str, object]:
    run, load, comparison = row.run, row.run.load, row.comparison
    return {
        "implementation": run.implementation,
        "model_set": run.model_set,
        "users": run.users,
        "status": run.status,
        "reason": run.reason,
        **_fields(load, _LOAD),
        "speedup_vs_baseline": row.speedup,
        **_fields(load.latency if load else None, tuple(Latency.model_fields)),
        **{f"{stage}_mean_ms": load.stages_ms.get(stage) if load else None for stage in _STAGES},
        **memory_fields(run.memory),
        **_fields(comparison.overall if comparison else None, tuple(ErrorFigures.model_fields)),
        **_ground_truth(sweep, comparison),
        "gate": row.gate,
        "warnings": " ".join(warning.code for warning in run.warnings),
        "weights": " ".join(dict.fromkeys(model.source for model in sweep.weights)),
        "device": sweep.environment.device,
        "device_name": sweep.environment.device_name,
        "git_revision": sweep.environment.git_revision,
        "started": run.started.isoformat() if run.started else None,
        "ended": run.ended.isoformat() if run.ended else None,
    }


def _ground_truth(sweep: Sweep, comparison: Comparison | None) -> dict[str, object]:
    """mAP of each model of the set, and its difference from the reference's; empty where there is none."""
    found = comparison.ground_truth if comparison else {}
    names = [model.model_name for model in sweep.weights]
    return {
        f"{figure}_{name}": getattr(found.get(name), field, None)
        for name in names
        for figure, field in (("map", "map"), ("map_difference", "difference"))
    }


def memory_fields(memory: Memory | None) -> dict[str, object]:
    """The columns of memory: what a table calls the peak, and every figure by itself."""
    peaks = {"memory_peak_mb": memory.peak_mb if memory else None}
    return peaks | {f"memory_{name}": getattr(memory, name, None) for name in Memory.model_fields}


def _fields(record: Load | Latency | ErrorFigures | None, names: tuple[str, ...]) -> dict[str, object]:
    return {name: getattr(record, name, None) for name in names}
