"""results.csv: every figure with all its digits, a row per implementation and load; what is infinite is inf."""

import csv
import io

from detbench.report.rows import Row, rows_of
from detbench.report.scaling import efficiency
from detbench.results.loads import Lateness, Times
from detbench.results.quality import Audit, CacheCheck, Comparison, ErrorFigures
from detbench.results.record import Record
from detbench.results.sweep import Memory, Sweep
from detbench.statistics.percentiles import Percentile
from detbench.statistics.ratios import Ratio

_STAGES = ("receive", "wait", "decode", "preprocess", "queue", "forward", "postprocess", "serialise")
_LOAD = ("window_s", "issued", "answered", "failed", "dropped", "offered_rps", "rps", "batch_size_mean")
_OFFERED = ("users", "rate", "arrivals", "burstiness", "steps", "trace", "seed", "max_in_flight")
_PERCENTILES = ("p50", "p90", "p99", "p99_9")


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
        "rounds": sweep.settings.repeats,
        "load": str(run.offered),
        "loop": run.offered.loop,
        **_fields(run.offered, _OFFERED),
        "verdict": run.verdict,
        "reason": run.reason,
        **_fields(load, _LOAD),
        **_ratio("speedup_vs_baseline", "speedup", row.speedup),
        "replicas": run.replicas,
        "replica_rps_min": min(load.replicas_rps.values(), default=None) if load else None,
        "replica_rps_max": max(load.replicas_rps.values(), default=None) if load else None,
        **_ratio("speedup_vs_one_replica", "scaling", row.scaling),
        **_ratio("efficiency", "efficiency", efficiency(row)),
        **times_fields("", load.latency if load else None),
        **times_fields("service_", load.service if load else None),
        **{f"lateness_{name}": getattr(load and load.lateness, name, None) for name in Lateness.model_fields},
        "generator_cpu_percent": max(load.generator_cpu_percent, default=None) if load else None,
        **{f"{stage}_mean_ms": load.stages_ms.get(stage) if load else None for stage in _STAGES},
        "not_model_share": load.not_model_share if load else None,
        **memory_fields(run.memory),
        **_fields(run.device, ("energy_j", "power_w", "throttled")),
        "joules_per_1000_images": run.joules_per_1000_images,
        "cpu_busy": run.cpu.busy if run.cpu else None,
        "cpu_steal": run.cpu.steal if run.cpu else None,
        **_fields(comparison.overall if comparison else None, tuple(ErrorFigures.model_fields)),
        **_ground_truth(sweep, comparison),
        "worst_replica": comparison.replica if comparison else None,
        "gate": row.gate,
        "slo_missed": "; ".join(str(miss) for miss in run.missed),
        **_audit(run.audit),
        **_cache(next((info.cache for info in sweep.implementations if info.name == run.implementation), None)),
        "warnings": " ".join(warning.code for warning in run.warnings),
        "weights": " ".join(dict.fromkeys(model.source for model in sweep.weights)),
        "device": sweep.environment.device,
        "device_name": sweep.environment.device_name,
        "git_revision": sweep.environment.git_revision,
        "started": run.started.isoformat() if run.started else None,
        "ended": run.ended.isoformat() if run.ended else None,
    }


def _ratio(name: str, prefix: str, ratio: Ratio | None) -> dict[str, object]:
    return {
        name: ratio.value if ratio else None,
        f"{prefix}_low": ratio.low if ratio else None,
        f"{prefix}_high": ratio.high if ratio else None,
    }


def _audit(audit: Audit | None) -> dict[str, object]:
    return {
        "audited": audit.audited if audit else None,
        "distinct_answers": audit.distinct if audit else None,
        "right_under_load": audit.right if audit else None,
        "under_load": audit.verdict if audit else None,
        "wrong_replicas": " ".join(n for n, each in audit.replicas.items() if each.right < each.audited)
        if audit
        else None,
    }


def _cache(cache: CacheCheck | None) -> dict[str, object]:
    return {f"repeated_{name}": getattr(cache, name, None) for name in CacheCheck.model_fields}


def _ground_truth(sweep: Sweep, comparison: Comparison | None) -> dict[str, object]:
    """mAP of each model of the set, and its difference from the reference's; empty where there is none."""
    found = comparison.ground_truth if comparison else {}
    names = [model.model_name for model in sweep.weights]
    return {
        f"{figure}_{name}": getattr(found.get(name), field, None)
        for name in names
        for figure, field in (
            ("map", "map"),
            ("map_difference", "difference"),
            ("map_difference_low", "low"),
            ("map_difference_high", "high"),
        )
    }


def memory_fields(memory: Memory | None) -> dict[str, object]:
    """The columns of memory: what a table calls the peak, and every figure by itself."""
    peaks = {"memory_peak_mb": memory.peak_mb if memory else None}
    return peaks | {f"memory_{name}": getattr(memory, name, None) for name in Memory.model_fields}


def times_fields(prefix: str, times: Times | None) -> dict[str, object]:
    """The columns of times: mean, percentiles with their intervals and whether they are certified, and the largest."""
    found: dict[str, object] = {f"{prefix}mean_ms": times.mean_ms if times else None}
    for name in _PERCENTILES:
        each: Percentile | None = getattr(times, name, None)
        found |= {
            f"{prefix}{name}_ms": each.value_ms if each else None,
            f"{prefix}{name}_low_ms": each.low_ms if each else None,
            f"{prefix}{name}_high_ms": each.high_ms if each else None,
            f"{prefix}{name}_certified": each.certified if each else None,
        }
    return found | {f"{prefix}max_ms": times.max_ms if times else None}


def _fields(record: Record | None, names: tuple[str, ...]) -> dict[str, object]:
    return {name: getattr(record, name, None) for name in names}
