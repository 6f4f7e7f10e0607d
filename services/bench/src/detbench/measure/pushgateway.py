"""Figures of one-shot jobs for Prometheus, which cannot scrape what has ended: through the Pushgateway.

Each implementation and model set is a group of its own for each kind of job, and every push replaces its whole group:
numbers of users, models and figures that were measured earlier and not now are gone, and a failure leaves no figure of
yesterday's success. What is not measured again stays; a timestamp beside the figures tells how old they are.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import httpx
from prometheus_client import CollectorRegistry, Gauge, push_to_gateway

from detbench.results.loads import ClosedLoop, Objective
from detbench.results.quality import Comparison
from detbench.results.sweep import Run

URL_VARIABLE = "BENCHMARK_PUSHGATEWAY_URL"

ERROR_FIGURES = {
    "detbench_boxes_mse": "Mean squared difference of box coordinates from the reference, square pixels",
    "detbench_scores_mse": "Mean squared difference of scores from the reference",
    "detbench_labels_accuracy": "Share of detections with the reference's label",
    "detbench_mean_iou": "Mean IoU of the assigned pairs of detections",
    "detbench_missed": "Detections of the reference without a partner",
    "detbench_spurious": "Detections without a partner in the reference",
    "detbench_gate_passed": "1 where the output error is within what float32 reassociation leaves",
    "detbench_compare_timestamp_seconds": "When the outputs were compared, Unix time",
}

RUN_FIGURES = {
    "detbench_run_rps": "Successful answers per second of the newest run; absent where it failed",
    "detbench_run_failures": "Failed requests of the newest run",
    "detbench_run_dropped": "Requests of the newest run that were not sent, because no sender was idle",
    "detbench_run_offered_rps": "Requests per second that the newest run offered; absent in a closed loop",
    "detbench_run_latency_seconds": "Client latency of the newest run, by quantile; absent where it failed",
    "detbench_run_latency_certified": "1 where the newest run had as many requests as the quantile needs",
    "detbench_run_service_seconds": "Latency from sending on, by quantile, of the newest run if its loop was open",
    "detbench_run_valid": "1 where the verdict on the newest run is valid; 0: invalid, or failed",
    "detbench_run_limits_held": "1 where the newest run holds the limits that were set; absent without limits",
    "detbench_run_memory_peak_bytes": "Peak of the server process's memory in the newest run, on a GPU the device's",
    "detbench_run_timestamp_seconds": "When the newest run ended, Unix time",
}

_QUANTILES = ("0.5", "0.9", "0.99", "0.999")
_TIMEOUT_S = 10.0


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
        figures.set("detbench_compare_timestamp_seconds", time.time())
        figures.push("detbench-compare", url)


def push_runs(runs: Sequence[Run], slo: Sequence[Objective] = (), url: str | None = None) -> None:
    """Push what a sweep has measured so far of one implementation, in place of what is there; see `push_comparisons`.

    Args:
        runs: of one implementation and model set, each under another load, or of another number of replicas. The label
            `users` is "open" for open loops; clusters have a label `replicas`.
        slo: the limits that the runs were to hold.
    """
    figures = _Figures(RUN_FIGURES, implementation=runs[0].implementation, model_set=runs[0].model_set)
    for run in runs:
        users = str(run.offered.users) if isinstance(run.offered, ClosedLoop) else "open"
        labels = {"users": users} | ({} if run.replicas is None else {"replicas": str(run.replicas)})
        if run.ended is not None:
            figures.set("detbench_run_timestamp_seconds", run.ended.timestamp(), **labels)
        figures.set("detbench_run_valid", run.verdict == "valid", **labels)
        if slo:
            figures.set("detbench_run_limits_held", not run.missed, **labels)
        if run.load is None:
            continue
        figures.set("detbench_run_failures", run.load.failed, **labels)
        figures.set("detbench_run_dropped", run.load.dropped, **labels)
        if run.load.offered_rps is not None:
            figures.set("detbench_run_offered_rps", run.load.offered_rps, **labels)
        if run.memory is not None and run.memory.peak_mb is not None:
            figures.set("detbench_run_memory_peak_bytes", run.memory.peak_mb * 1e6, **labels)
        if not run.measured or (latency := run.load.latency) is None:
            continue
        figures.set("detbench_run_rps", run.load.rps, **labels)
        for quantile, each in zip(_QUANTILES, latency.percentiles().values(), strict=True):
            figures.set("detbench_run_latency_seconds", each.value_ms / 1e3, **labels, quantile=quantile)
            figures.set("detbench_run_latency_certified", each.certified, **labels, quantile=quantile)
        if users == "open" and run.load.service is not None:
            for quantile, each in zip(_QUANTILES, run.load.service.percentiles().values(), strict=True):
                figures.set("detbench_run_service_seconds", each.value_ms / 1e3, **labels, quantile=quantile)
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
            push_to_gateway(url, job, self._registry, self._labels, timeout=_TIMEOUT_S, handler=_directly)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            reason = error or type(error).__name__
            sys.stderr.write(f"warning: the Pushgateway at {url} did not take the figures: {reason}\n")


def _directly(
    url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
) -> Callable[[], None]:
    """A handler of prometheus_client that goes through no proxy of the environment: the Pushgateway is ours."""

    def push() -> None:
        httpx.request(method, url, headers=headers, content=data, timeout=timeout, trust_env=False).raise_for_status()

    return push
