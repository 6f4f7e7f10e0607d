"""Figures of one-shot jobs for Prometheus, which cannot scrape what has ended: through the Pushgateway.

Each implementation and model set is a group of its own, so that a job replaces its own figures and no others.
"""

import os
import sys
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway

from detbench.results import Comparison, Run

URL_VARIABLE = "BENCHMARK_PUSHGATEWAY_URL"

_ERROR_FIGURES = {
    "boxes_mse": "Mean squared difference of box coordinates from the reference, square pixels",
    "scores_mse": "Mean squared difference of scores from the reference",
    "labels_accuracy": "Share of detections with the reference's label",
    "mean_iou": "Mean IoU of the assigned pairs of detections",
    "missed": "Detections of the reference without a partner",
    "spurious": "Detections without a partner in the reference",
}


def push_comparisons(comparisons: Iterable[Comparison], url: str | None = None) -> None:
    """Push output errors; does nothing without a Pushgateway's URL, from the argument or `BENCHMARK_PUSHGATEWAY_URL`.

    A Pushgateway that does not answer is reported on stderr: the figures are on disk already.
    """
    for comparison in comparisons:
        registry = CollectorRegistry()
        labels = ("implementation", "model_set", "model")
        gauges = {
            name: Gauge(f"detbench_{name}", text, labels, registry=registry) for name, text in _ERROR_FIGURES.items()
        }
        for model, figures in [*comparison.per_model.items(), ("all", comparison.overall)]:
            for name, gauge in gauges.items():
                gauge.labels(comparison.implementation, comparison.model_set, model).set(getattr(figures, name))
        passed = Gauge(
            "detbench_gate_passed",
            "1 where the output error is within what float32 reassociation leaves",
            labels[:2],
            registry=registry,
        )
        passed.labels(comparison.implementation, comparison.model_set).set(comparison.gate.passed)
        _push(registry, "detbench-compare", comparison.implementation, comparison.model_set, url)


def push_run(run: Run, url: str | None = None) -> None:
    """Push what one run of a sweep measured; see `push_comparisons`."""
    if run.load is None:
        return
    registry = CollectorRegistry()
    labels = ("implementation", "model_set", "users")
    values = (run.implementation, run.model_set, str(run.users))

    def gauge(name: str, text: str, value: float, **more: str) -> None:
        known = gauges.get(name) or Gauge(name, text, (*labels, *more), registry=registry)
        gauges[name] = known
        known.labels(*values, *more.values()).set(value)

    gauges: dict[str, Gauge] = {}
    gauge("detbench_run_rps", "Successful answers per second of the newest run", run.load.rps)
    gauge("detbench_run_failures", "Failed requests of the newest run", run.load.failures)
    if run.load.latency is not None:
        for quantile, ms in (
            ("0.5", run.load.latency.p50_ms),
            ("0.9", run.load.latency.p90_ms),
            ("0.99", run.load.latency.p99_ms),
        ):
            gauge("detbench_run_latency_seconds", "Client latency of the newest run", ms / 1e3, quantile=quantile)
    if run.vram is not None and run.vram.peak_mb is not None:
        gauge("detbench_run_vram_peak_bytes", "Peak of torch's allocator in the newest run", run.vram.peak_mb * 1e6)
    _push(registry, "detbench-run", run.implementation, run.model_set, url, users=str(run.users))


def _push(
    registry: CollectorRegistry, job: str, implementation: str, model_set: str, url: str | None, **more: str
) -> None:
    url = url or os.environ.get(URL_VARIABLE)
    if not url:
        return
    try:
        pushadd_to_gateway(
            url, job, registry, grouping_key={"implementation": implementation, "model_set": model_set, **more}
        )
    except OSError as error:
        sys.stderr.write(f"warning: the Pushgateway at {url} did not take the figures: {error}\n")
