"""Figures of one-shot jobs for Prometheus, which cannot scrape what has ended: through the Pushgateway.

Each implementation and model set is a group of its own, so that a job replaces its own figures and no others.
"""

import os
import sys
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway

from detbench.results import Comparison, Run

URL_VARIABLE = "BENCHMARK_PUSHGATEWAY_URL"

ERROR_FIGURES = {
    "detbench_boxes_mse": "Mean squared difference of box coordinates from the reference, square pixels",
    "detbench_scores_mse": "Mean squared difference of scores from the reference",
    "detbench_labels_accuracy": "Share of detections with the reference's label",
    "detbench_mean_iou": "Mean IoU of the assigned pairs of detections",
    "detbench_missed": "Detections of the reference without a partner",
    "detbench_spurious": "Detections without a partner in the reference",
    "detbench_gate_passed": "1 where the output error is within what float32 reassociation leaves",
}

RUN_FIGURES = {
    "detbench_run_rps": "Successful answers per second of the newest run",
    "detbench_run_failures": "Failed requests of the newest run",
    "detbench_run_latency_seconds": "Client latency of the newest run, by quantile",
    "detbench_run_vram_peak_bytes": "Peak of torch's allocator in the newest run; absent without a GPU",
}


def push_comparisons(comparisons: Iterable[Comparison], url: str | None = None) -> None:
    """Push output errors; does nothing without a Pushgateway's URL, from the argument or `BENCHMARK_PUSHGATEWAY_URL`.

    A Pushgateway that does not answer is reported on stderr: the figures are on disk already.
    """
    for comparison in comparisons:
        figures = _Figures(ERROR_FIGURES, implementation=comparison.implementation, model_set=comparison.model_set)
        for model, errors in [*comparison.per_model.items(), ("all", comparison.overall)]:
            for name, value in errors.model_dump().items():
                if f"detbench_{name}" in ERROR_FIGURES:
                    figures.set(f"detbench_{name}", value, model=model)
        figures.set("detbench_gate_passed", comparison.gate.passed)
        figures.push("detbench-compare", url)


def push_run(run: Run, url: str | None = None) -> None:
    """Push what one run of a sweep measured; see `push_comparisons`."""
    if run.load is None:
        return
    figures = _Figures(RUN_FIGURES, implementation=run.implementation, model_set=run.model_set, users=str(run.users))
    figures.set("detbench_run_rps", run.load.rps)
    figures.set("detbench_run_failures", run.load.failures)
    if (latency := run.load.latency) is not None:
        for quantile, ms in (("0.5", latency.p50_ms), ("0.9", latency.p90_ms), ("0.99", latency.p99_ms)):
            figures.set("detbench_run_latency_seconds", ms / 1e3, quantile=quantile)
    if run.vram is not None and run.vram.peak_mb is not None:
        figures.set("detbench_run_vram_peak_bytes", run.vram.peak_mb * 1e6)
    figures.push("detbench-run", url)


class _Figures:
    """Gauges that share labels, which also name their group at the Pushgateway."""

    def __init__(self, texts: Mapping[str, str], **labels: str) -> None:
        self._texts = texts
        self._labels = labels
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}

    def set(self, name: str, value: float, **more: str) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, self._texts[name], (*self._labels, *more), registry=self._registry)
        self._gauges[name].labels(*self._labels.values(), *more.values()).set(value)

    def push(self, job: str, url: str | None) -> None:
        url = url or os.environ.get(URL_VARIABLE)
        if not url:
            return
        try:
            pushadd_to_gateway(url, job, self._registry, grouping_key=self._labels)
        except OSError as error:
            sys.stderr.write(f"warning: the Pushgateway at {url} did not take the figures: {error}\n")
