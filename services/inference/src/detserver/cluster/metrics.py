"""What Prometheus is told of all replicas at once."""

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector


def exposition(replicas: Mapping[str, Sequence[Metric]]) -> bytes:
    """The metrics of all replicas in Prometheus' text format; each sample has the label `replica`."""
    return generate_latest(_Merged(replicas))


class _Merged(Collector):
    def __init__(self, replicas: Mapping[str, Sequence[Metric]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for replica, metrics in self._replicas.items():
            for metric in metrics:
                into = merged.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
                )
                into.samples += [each._replace(labels={**each.labels, "replica": replica}) for each in metric.samples]
        return merged.values()
