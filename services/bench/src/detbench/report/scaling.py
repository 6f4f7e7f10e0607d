"""What more replicas are worth: the rate of each number of them against that of one, under the same load."""

from collections.abc import Iterable

from detbench.report.rows import NOT_APPLICABLE, PER_REPLICA_COLUMN, REPLICAS_COLUMN, Column, Row, per_replica, speedup
from detbench.results.sweep import Sweep
from detbench.statistics.ratios import Ratio

COLUMNS = (
    Column("implementation", "way of running the models", numeric=False),
    Column("load", "the same for every number of replicas", numeric=False),
    REPLICAS_COLUMN,
    Column("RPS", "successful requests per second, of all replicas together"),
    PER_REPLICA_COLUMN,
    Column(
        "vs 1 replica",
        "RPS over those of one replica under the same load; of several rounds, with the interval that holds it with "
        "95 %",
    ),
    Column("efficiency", "that ratio over the number of replicas; n/a where one replica was not measured"),
)


def efficiency(row: Row) -> Ratio | None:
    """How much of what its replicas would do alone a cluster does; None where one replica was not measured."""
    found, replicas = row.scaling, row.run.replicas
    if found is None or replicas is None:
        return None
    low, high = (None if bound is None else bound / replicas for bound in (found.low, found.high))
    return Ratio(found.value / replicas, low, high, found.confidence)


def scaling_rows(sweep: Sweep, rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Text under each of `COLUMNS`, a row for each number of replicas; none where no cluster was started."""
    if not sweep.settings.replicas or sweep.settings.host is not None:
        return []
    return [
        (
            row.run.implementation,
            str(row.run.offered),
            str(row.run.replicas),
            "–" if row.rps is None else f"{row.rps:.3g}",
            per_replica(row.run.load),
            NOT_APPLICABLE if row.scaling is None else speedup(row.scaling),
            percent(efficiency(row)),
        )
        for row in sorted(rows, key=lambda row: _place(sweep, row))
    ]


def percent(ratio: Ratio | None) -> str:
    """A ratio in percent, with its interval where there is one."""
    if ratio is None:
        return NOT_APPLICABLE
    interval = "" if ratio.low is None or ratio.high is None else f" [{100 * ratio.low:.0f}, {100 * ratio.high:.0f}]"
    return f"{100 * ratio.value:.0f} %{interval}"


def _place(sweep: Sweep, row: Row) -> tuple[int, int, int]:
    """So that the numbers of replicas of one load are below each other."""
    settings, run = sweep.settings, row.run
    loads = [str(offered) for offered in settings.offered]
    return settings.implementations.index(run.implementation), loads.index(str(run.offered)), run.replicas or 0
