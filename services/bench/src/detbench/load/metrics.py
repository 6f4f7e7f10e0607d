"""What the load side exports to Prometheus: a worker its answers, the master its users, workers, state and target."""

from collections.abc import Iterable, Mapping
from typing import Any

from locust.env import Environment
from locust.runners import MasterRunner
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# The server's buckets: 1 ms to 60 s with a factor of 1.5.
LATENCY_BUCKETS_S = (*(0.001 * 1.5**step for step in range(28)), 60.0)

LOADING = "LOAD"
"""Locust's `request_type` of a test that could not begin: the server refuses to load what it asks for, for example."""

_STATES = ("ready", "spawning", "running", "cleanup", "stopping", "stopped")


class LoadMetrics:
    """Counts the requests of this process, for one implementation and model set at a time.

    Attributes:
        registry: where the metrics are.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._labels = ("", "")
        self._started = Counter(
            "detbench_requests_started_total",
            "Requests that users of this worker sent",
            ("implementation", "model_set"),
            registry=self.registry,
        )
        self._requests = Counter(
            "detbench_requests_total",
            "Requests of this worker that ended, by outcome: success, failure (an HTTP error, a malformed answer, or a "
            "test that could not begin), no_answer (connection refused, broken or timed out)",
            ("implementation", "model_set", "outcome"),
            registry=self.registry,
        )
        self._duration = Histogram(
            "detbench_request_duration_seconds",
            "Service time of this worker's successful requests, from sending to the answer",
            ("implementation", "model_set"),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._latency = Histogram(
            "detbench_latency_seconds",
            "Latency of this worker's successful requests: in an open loop from the time when they were to be sent, in "
            "a closed one their service time",
            ("implementation", "model_set"),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._lateness = Histogram(
            "detbench_lateness_seconds",
            "How long after its time each request of an open loop was sent",
            ("implementation", "model_set"),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._dropped = Counter(
            "detbench_requests_dropped_total",
            "Requests of an open loop that were not sent, because no sender was idle",
            ("implementation", "model_set"),
            registry=self.registry,
        )

    def target(self, implementation: str, model_set: str) -> None:
        """Count for this implementation and model set from now on; their series begin at zero."""
        self._labels = (implementation, model_set)
        self._started.labels(*self._labels)
        for series in (self._duration, self._latency, self._lateness, self._dropped):
            series.labels(*self._labels)
        for outcome in ("success", "failure", "no_answer"):
            self._requests.labels(*self._labels, outcome)

    def about(self, run: str, load: str, limits_s: Mapping[str, float]) -> None:
        """Say which run of detbench this is, and its limits: percentile to seconds."""
        info = Gauge(
            "detbench_run_info", "1 while this load runs", ("run", "load", "implementation"), registry=self.registry
        )
        info.labels(run, load, self._labels[0]).set(1)
        limit = Gauge(
            "detbench_limit_seconds", "Limit of a latency that the run is to hold", ("figure",), registry=self.registry
        )
        for figure, limit_s in limits_s.items():
            limit.labels(figure).set(limit_s)

    def dropped(self) -> None:
        """Count a request that is not sent."""
        self._dropped.labels(*self._labels).inc()

    def started(self) -> None:
        """Count a request that is about to be sent."""
        self._started.labels(*self._labels).inc()

    def on_request(
        self,
        request_type: str,
        response_time: float,
        exception: BaseException | None,
        response: Any = None,
        context: Mapping[str, Any] | None = None,
        **_: object,
    ) -> None:
        """Count an answer; a listener of Locust's `request` event, whose `response_time` is in ms."""
        answered = request_type == LOADING or bool(getattr(response, "status_code", 0))
        if exception is None:
            service_s = response_time / 1e3
            request = (context or {}).get("request")
            lateness_s = request.sent_s - request.scheduled_s if request is not None else 0.0
            self._duration.labels(*self._labels).observe(service_s)
            self._latency.labels(*self._labels).observe(lateness_s + service_s)
            self._lateness.labels(*self._labels).observe(lateness_s)
        outcome = "success" if exception is None else "failure" if answered else "no_answer"
        self._requests.labels(*self._labels, outcome).inc()


class RunnerState(Collector):
    """Users, state and target of the process that decides: the master, or a Locust that runs alone."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def collect(self) -> Iterable[Metric]:
        """Read the runner; called at every scrape."""
        runner, options = self._environment.runner, self._environment.parsed_options
        if runner is None or options is None:
            return
        yield GaugeMetricFamily("detbench_users", "Users that run now", value=runner.user_count)
        yield GaugeMetricFamily("detbench_target_users", "Users that were asked for", value=runner.target_user_count)
        state = GaugeMetricFamily("detbench_state", "1 for the state that the load test is in", labels=("state",))
        for name in _STATES:
            state.add_metric((name,), float(runner.state == name))
        yield state
        target = GaugeMetricFamily(
            "detbench_target_info", "1 for what the users ask for", labels=("host", "implementation", "model_set")
        )
        target.add_metric((self._environment.host or "", options.implementation, options.model_set), 1.0)
        yield target
        if isinstance(runner, MasterRunner):
            workers = GaugeMetricFamily(
                "detbench_workers", "Workers that the master knows, by state", labels=("state",)
            )
            for name in ("ready", "spawning", "running", "missing"):
                workers.add_metric((name,), len(getattr(runner.clients, name)))
            yield workers


def serve(metrics: LoadMetrics, port: int) -> None:
    """Answer Prometheus on `port`, from a thread (a greenlet, where gevent patches threads)."""
    start_http_server(port, registry=metrics.registry)
