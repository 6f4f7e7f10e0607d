"""Every metric of the server, in one place."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from detserver.errors import DetserverError, InternalError
from detserver.http.stages import STAGES, Stages
from detserver.machine.memory import Resident, Vram

# 1 ms to 60 s with a factor of 1.5, so that a percentile read off the buckets is never far off.
LATENCY_BUCKETS_S = (*(0.001 * 1.5**step for step in range(28)), 60.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Telemetry:
    """The metrics of one server, in a registry of their own.

    Args:
        implementations: whose requests are counted; with `model_sets`, the only values that label them.
    """

    def __init__(self, implementations: Iterable[str], model_sets: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        self._known = {*implementations, *model_sets}
        self._requests = Counter(
            "detserver_requests_total",
            "Answered requests to /infer, by HTTP status",
            ("implementation", "model_set", "status"),
            registry=self.registry,
        )
        self._duration = Histogram(
            "detserver_request_duration_seconds",
            "From the request's headers to its answer's bytes, of successful requests to /infer; the sum of its stages",
            ("implementation", "model_set"),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._stages = Histogram(
            "detserver_stage_duration_seconds",
            f"Time of one stage of a successful request: {', '.join(STAGES)}",
            ("implementation", "stage"),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "detserver_batch_size",
            "Images in the batch that a successful request was part of",
            ("implementation",),
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        self._rejected = Counter(
            "detserver_rejected_total",
            "Requests to /infer that were not answered with detections, by the reason",
            ("reason",),
            registry=self.registry,
        )
        self._uploaded = Counter(
            "detserver_device_upload_bytes_total",
            "Bytes of pictures that crossed to the device; none on a CPU",
            registry=self.registry,
        )
        for reason in DetserverError.__subclasses__():
            self._rejected.labels(reason.__name__)

    def expect(self, implementation: str, model_set: str) -> None:
        """Let the series of an implementation that was loaded begin at zero, so that rates see its first request."""
        self._requests.labels(implementation, model_set, "200")
        self._duration.labels(implementation, model_set)

    def answered(self, implementation: str, model_set: str, stages: Stages, batch_size: int) -> None:
        """Count a successful request."""
        self._requests.labels(implementation, model_set, "200").inc()
        self._duration.labels(implementation, model_set).observe(stages.total_s)
        for stage, seconds in stages.seconds.items():
            self._stages.labels(implementation, stage).observe(seconds)
        self._batch_size.labels(implementation).observe(batch_size)

    def uploaded(self, size: int) -> None:
        """Count what crossed to the device, bytes."""
        self._uploaded.inc(size)

    def rejected(self, implementation: str, model_set: str, error: Exception) -> None:
        """Count a request that failed. Names that the server does not know are counted as `unknown`."""
        labels = [name if name in self._known else "unknown" for name in (implementation, model_set)]
        reason = type(error) if isinstance(error, DetserverError) else InternalError
        self._requests.labels(*labels, str(reason.status)).inc()
        self._rejected.labels(reason.__name__).inc()

    def watch(
        self,
        queue_depth: Callable[[], int],
        loaded: Callable[[], list[tuple[str, str]]],
        slow_nms: Callable[[], dict[tuple[str, str], int]],
        images: Callable[[], dict[tuple[str, str], int]],
        weights: Callable[[], list[tuple[str, str, str]]],
        vram: Callable[[], Vram],
        resident: Callable[[], Resident],
        build: Mapping[str, str],
    ) -> None:
        """Export what is read when it is asked for.

        Args:
            queue_depth: requests that wait for the device.
            loaded: (implementation, model set) of what can serve.
            slow_nms: batches whose NMS had to look at all candidates, by (implementation, model set).
            images: that the device has worked on, by (implementation, model set).
            weights: (model set, model, source) of the weights in use.
            vram: GPU memory of this process.
            resident: RAM of this process.
            build: labels of `detserver_build_info`.
        """
        self.registry.register(_State(queue_depth, loaded, slow_nms, images, weights, vram, resident, build))


class _State(Collector):
    def __init__(
        self,
        queue_depth: Callable[[], int],
        loaded: Callable[[], list[tuple[str, str]]],
        slow_nms: Callable[[], dict[tuple[str, str], int]],
        images: Callable[[], dict[tuple[str, str], int]],
        weights: Callable[[], list[tuple[str, str, str]]],
        vram: Callable[[], Vram],
        resident: Callable[[], Resident],
        build: Mapping[str, str],
    ) -> None:
        self._queue_depth = queue_depth
        self._loaded = loaded
        self._slow_nms = slow_nms
        self._images = images
        self._weights = weights
        self._vram = vram
        self._resident = resident
        self._build = build

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "detserver_queue_depth", "Requests that wait for the device", value=float(self._queue_depth())
        )
        loaded = GaugeMetricFamily(
            "detserver_implementation_loaded",
            "1 for each implementation that can serve at once",
            labels=("implementation", "model_set"),
        )
        for key in self._loaded():
            loaded.add_metric(key, 1.0)
        yield loaded
        slow_nms = CounterMetricFamily(
            "detserver_slow_nms",
            "Batches whose NMS had to look at all candidates, because the first 1000 did not decide it",
            labels=("implementation", "model_set"),
        )
        images = CounterMetricFamily(
            "detserver_device_images",
            "Images that the device has worked on, whatever became of their requests",
            labels=("implementation", "model_set"),
        )
        for counter, counts in ((slow_nms, self._slow_nms()), (images, self._images())):
            for key, count in counts.items():
                counter.add_metric(key, float(count))
            yield counter
        weights = GaugeMetricFamily(
            "detserver_weights_info",
            "1 for each model whose weights were found; source is pretrained, local or random",
            labels=("model_set", "model", "source"),
        )
        for row in self._weights():
            weights.add_metric(row, 1.0)
        yield weights
        vram = GaugeMetricFamily(
            "detserver_vram_bytes",
            "GPU memory of torch, of this process and of the device, peaks since the reset; no sample without a GPU",
            labels=("kind",),
        )
        resident = GaugeMetricFamily(
            "detserver_resident_bytes",
            "Resident memory of this process, now and its peak since the last reset",
            labels=("kind",),
        )
        for family, figures in ((vram, self._vram()), (resident, self._resident())):
            for kind, value in vars(figures).items():
                if value is not None:
                    family.add_metric((kind,), float(value))
            yield family
        build = GaugeMetricFamily("detserver_build_info", "Versions of this server", labels=tuple(self._build))
        build.add_metric(tuple(self._build.values()), 1.0)
        yield build
