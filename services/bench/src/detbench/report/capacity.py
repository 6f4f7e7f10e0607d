"""Capacities: the sentence, the table and its rows; for a terminal, as Markdown and as CSV."""

import csv
import io
import math
from collections.abc import Sequence

from rich.table import Table

from detbench.report.comma_separated import memory_fields, times_fields
from detbench.report.rows import MEMORY_COLUMN, NOT_APPLICABLE, REPLICAS_COLUMN, Column, megabytes
from detbench.report.table import markdown_lines, measured_on, table_of
from detbench.results.capacity import Capacities, Capacity, Probe
from detbench.results.loads import Objective, OpenLoop
from detbench.results.sweep import BASELINE, deployment
from detbench.slo import figure_of
from detbench.verdict import FEW_REQUESTS

_IMPLEMENTATION = Column("implementation", "way of running the models", numeric=False)
_BEFORE = (
    Column(
        "capacity (requests/s)",
        "the highest rate that passed: all limits were held; ≥: no higher rate is known to be too much for the server",
    ),
    Column("first failed (requests/s)", "the lowest rate above it that failed; the capacity lies between the two"),
    Column(
        "vs baseline",
        "capacity over baseline's with as many replicas, with what the rates that passed and failed of both leave open",
    ),
)
_CONFIRMED = Column(
    "confirmed", "requests of the longer probe that passed at this rate; no: a short one alone has passed"
)
_SCALING = (
    Column("vs 1 replica", "capacity over that of one replica, with what the rates of both leave open"),
    Column("efficiency", "that ratio over the number of replicas; n/a where one replica was not measured"),
)
_AFTER = (
    MEMORY_COLUMN,
    Column("probes", "loads that were tried"),
    Column("took (s)", "all probes together"),
    Column("search", "what ended it", numeric=False),
)
_ENDINGS = {
    "none": "no rate passes",
    "max-rate": "passes at --max-rate",
    "generator": "not the server was the limit",
    "time": "time over (--max-duration)",
    "probes": "probes used up",
    "failure": "broken off by a problem",
    None: "not ended",
}

# Of a load by itself it is --duration.
_LONGER = "raise --max-duration, which all probes share"

PROBE_COLUMNS = (
    _IMPLEMENTATION,
    Column("probe", "number, in the order in which they were made; its seed is this plus that of the search"),
    Column("rate (requests/s)", "offered"),
    Column("window (s)", "for which requests were to be sent; one that cannot pass any more is ended before"),
    Column("kind", "confirming: longer, and overrules others", numeric=False),
    Column("requests", "that were sent and ended, or dropped; – where it was ended early"),
    Column("outcome", "unusable: something else than the server was the limit", numeric=False),
)


def sentence_of(capacity: Capacity, slo: Sequence[Objective]) -> str:
    """What was found by one search, without a full stop."""
    name, limits = capacity.deployment, " and ".join(map(str, slo))
    passed, failed = capacity.passed, capacity.failed
    if passed is None and not capacity.probes:
        return f"{name} was not measured"
    if passed is None:
        lowest = f" (failed at {rps(failed.rate)}: {failed.reason})" if failed else ""
        return f"{name} holds {limits} at no rate that was tried{lowest}"
    how = f"passed at {rps(passed.rate)}{'' if passed.confirms else ', not confirmed'}"
    if failed is None:
        return f"{name} holds {limits} up to {rps(passed.rate)} requests/s at least ({how}, the highest rate tried)"
    if capacity.at_least:
        return (
            f"{name} holds {limits} up to {rps(passed.rate)} requests/s at least ({how}; at {rps(failed.rate)} not the "
            f"server was the limit: {failed.reason})"
        )
    how += f", failed at {rps(failed.rate)}: {failed.reason}"
    return f"{name} holds {limits} up to {rps(passed.rate)} requests/s ({how})"


def answer_of(capacities: Capacities) -> str:
    """The sentence that a report is opened for: the highest capacity of those that claim the reference's answers."""
    slo = capacities.settings.slo
    found = [(each.passed.rate, each) for each in capacities.capacities if each.passed]
    right = [(rate, each) for rate, each in found if each.implementation.exact]
    said, highest = [], 0.0
    if right:
        highest, best = max(right, key=lambda each: each[0])
        said.append(f"{sentence_of(best, slo)}{_times_baseline(best, capacities)}")
    said += [
        f"{each.deployment} does {rps(rate)}, but does not claim the reference's answers"
        for rate, each in found
        if rate > highest and not each.implementation.exact
    ]
    said += [sentence_of(each, slo) for each in capacities.capacities if each.passed is None and each.ended_by]
    return f"{'. '.join(said) or 'No capacity has been found yet'}."


def columns_of(capacities: Capacities) -> tuple[Column, ...]:
    """The columns of the table: each limit has one; those of replicas where clusters served."""
    settings = capacities.settings
    limited = (
        Column(
            f"{each.figure} there", f"of the probe that passed at the capacity; the limit is {each.text(each.limit)}"
        )
        for each in settings.slo
    )
    replicas = (REPLICAS_COLUMN,) if settings.replicas else ()
    scaling = _SCALING if _scales(capacities) else ()
    return (_IMPLEMENTATION, *replicas, *_BEFORE, *scaling, _CONFIRMED, *limited, *_AFTER)


def rows_of(capacities: Capacities) -> list[tuple[str, ...]]:
    """Text under each of `columns_of`, a row for each implementation and number of replicas."""
    return [_cells(each, capacities) for each in capacities.capacities]


def probe_columns_of(capacities: Capacities) -> tuple[Column, ...]:
    """The columns of the table of probes: each limit has one."""
    limited = (Column(each.figure, f"the limit is {each.text(each.limit)}") for each in capacities.settings.slo)
    return (*PROBE_COLUMNS, *limited, Column("why not", "the reason, where it did not pass", numeric=False))


def probe_rows_of(capacities: Capacities) -> list[tuple[Probe, tuple[str, ...]]]:
    """Each probe with the text under each of `probe_columns_of`, in the order in which they were made."""
    return [
        (
            probe,
            (
                capacity.deployment,
                str(number),
                f"{probe.rate:g}",
                f"{probe.duration_s:.0f}",
                "confirming" if probe.confirms else "",
                f"{probe.run.load.issued:,}" if probe.run.load else "–",
                probe.outcome,
                *(_figure(each, probe) for each in capacities.settings.slo),
                probe.reason,
            ),
        )
        for capacity in capacities.capacities
        for number, probe in enumerate(capacity.probes, start=1)
    ]


def terminal_table(capacities: Capacities) -> Table:
    """The table for a terminal; what is none, is not confirmed, or may be more, stands out."""
    settings = capacities.settings
    title = f"Capacity of {settings.model_set} on {capacities.environment.device_name}"
    styles = [
        "red" if each.passed is None else "yellow" if each.at_least or not each.passed.confirms else ""
        for each in capacities.capacities
    ]
    return table_of(title, columns_of(capacities), rows_of(capacities), styles)


def notes_of(capacities: Capacities) -> list[str]:
    """Why the first rate that failed did so, and what is to be doubted, a line each."""
    notes = []
    for each in capacities.capacities:
        name = each.deployment
        if each.failed:
            notes.append(f"{name} at {rps(each.failed.rate)} requests/s {each.failed.outcome}: {each.failed.reason}")
        if each.passed:
            notes += [
                f"{name} at {rps(each.passed.rate)} requests/s: {doubt.message}; "
                f"{_LONGER if doubt.code == FEW_REQUESTS else doubt.remedy} ({doubt.code})"
                for doubt in each.passed.run.warnings
                if doubt.invalidates
            ]
    return notes


def capacity_markdown(capacities: Capacities) -> str:
    """The table in Markdown, with the sentence, what the machine and the weights are above it, and notes below."""
    settings = capacities.settings
    limits = ", ".join(map(str, settings.slo))
    lines = [
        f"Capacity of model set {settings.model_set} under {limits}, {settings.arrivals or 'poisson'} arrivals, "
        f"{settings.images} images of {settings.dataset}, "
        f"{measured_on(capacities.environment, capacities.weights, capacities.started)}",
        "",
        answer_of(capacities),
        "",
        *markdown_lines(columns_of(capacities), rows_of(capacities)),
    ]
    notes = [f"- {note}" for note in notes_of(capacities)]
    notes += [f"- problem: {problem.splitlines()[0]}" for problem in capacities.problems]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def capacity_csv(capacities: Capacities) -> str:
    """Every figure with all its digits, a row per probe; what was not measured is empty."""
    records = [
        _record(capacities, capacity, number, probe)
        for capacity in capacities.capacities
        for number, probe in enumerate(capacity.probes, start=1)
    ]
    out = io.StringIO()
    if records:
        writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return out.getvalue()


def rps(rate: float) -> str:
    """A rate: three digits at least."""
    if rate < 0.9995:
        return f"{rate:.3f}"
    return f"{rate:.2f}" if rate < 9.995 else f"{rate:.1f}" if rate < 99.95 else f"{rate:,.0f}"


def _cells(capacity: Capacity, capacities: Capacities) -> tuple[str, ...]:
    passed, failed = capacity.passed, capacity.failed
    precision = 100 * capacities.settings.precision
    confirmed = f"{passed.run.load.issued:,}" if passed and passed.confirms and passed.run.load else "no"
    replicas = (str(capacity.replicas),) if capacities.settings.replicas else ()
    alone = _ratio(capacity, _search_of(capacities, deployment(capacity.implementation.name, 1)))
    return (
        capacity.implementation.name,
        *replicas,
        f"{'≥ ' if capacity.at_least else ''}{rps(passed.rate)}" if passed else "none",
        rps(failed.rate) if failed and failed.outcome == "failed" else "–",
        _versus(_ratio(capacity, _baseline(capacity, capacities))) or "–",
        *((_versus(alone) or NOT_APPLICABLE, _efficiency(alone, capacity.replicas)) if _scales(capacities) else ()),
        confirmed if passed else "–",
        *(_figure(each, passed) for each in capacities.settings.slo),
        megabytes(passed.run.memory.peak_mb if passed and passed.run.memory else None),
        str(len(capacity.probes)),
        f"{sum(probe.took_s for probe in capacity.probes):.0f}",
        _ENDINGS.get(capacity.ended_by, f"within {precision:g} %"),
    )


def _figure(objective: Objective, probe: Probe | None) -> str:
    """The figure that a limit is of; a percentile in parentheses where it is uncertain."""
    load = probe.run.load if probe else None
    value = figure_of(objective, load, probe.run.memory if probe else None)
    if load is None or value is None:
        return "–"
    percentile = load.latency.percentiles().get(objective.figure) if load.latency else None
    text = objective.text(value)
    return text if percentile is None or percentile.certified else f"({text})"


def _scales(capacities: Capacities) -> bool:
    """Whether clusters were started for it, so that numbers of replicas are compared."""
    return bool(capacities.settings.replicas) and capacities.settings.host is None


def _search_of(capacities: Capacities, name: str) -> Capacity | None:
    """The search of a deployment, by its name."""
    return next((each for each in capacities.capacities if each.deployment == name), None)


def _baseline(capacity: Capacity, capacities: Capacities) -> Capacity | None:
    """The search of baseline with as many replicas."""
    return _search_of(capacities, deployment(BASELINE, capacity.replicas))


def _ratio(capacity: Capacity, other: Capacity | None) -> tuple[float, float, float] | None:
    """How many times the other's the capacity is, and the least and the most that the rates which failed leave open.

    0 and infinity where a rate that failed is not known; None where one of the two has no capacity.
    """
    if other is None or other.passed is None or capacity.passed is None:
        return None
    passed, failed = capacity.passed.rate, capacity.failed.rate if capacity.failed else math.inf
    if capacity is other:
        return 1.0, 1.0, 1.0
    low = 0.0 if other.at_least or other.failed is None else passed / other.failed.rate
    return passed / other.passed.rate, low, math.inf if capacity.at_least else failed / other.passed.rate


def _versus(found: tuple[float, float, float] | None) -> str:
    """A ratio of `_ratio` with what is open; empty where there is none."""
    if found is None:
        return ""
    ratio, low, high = found
    return f"{ratio:.2f}×" + (f" [{low:.2f}, {high:.2f}]" if 0 < low < high < math.inf else "")


def _efficiency(alone: tuple[float, float, float] | None, replicas: int | None) -> str:
    """The ratio to one replica over the number of replicas, in percent, with what is open."""
    if alone is None or replicas is None:
        return NOT_APPLICABLE
    ratio, low, high = (100 * each / replicas for each in alone)
    return f"{ratio:.0f} %" + (f" [{low:.0f}, {high:.0f}]" if 0 < low < high < math.inf else "")


def _times_baseline(capacity: Capacity, capacities: Capacities) -> str:
    """The ratio, as the end of a sentence: one figure where both brackets are narrow, else the least and the most."""
    baseline = _baseline(capacity, capacities)
    found = _ratio(capacity, baseline)
    if found is None or capacity is baseline:
        return ""
    ratio, low, high = found
    assert baseline is not None
    assert baseline.passed is not None
    wide = high > (1 + 2 * capacities.settings.precision) ** 2 * low
    times = f"{low:.3g} to {high:.3g}" if wide and 0 < low < high < math.inf else f"{ratio:.3g}"
    return f"; {times} times baseline ({rps(baseline.passed.rate)})"


def _record(capacities: Capacities, capacity: Capacity, number: int, probe: Probe) -> dict[str, object]:
    run, load, offered = probe.run, probe.run.load, probe.run.offered
    assert isinstance(offered, OpenLoop)
    return {
        "implementation": capacity.implementation.name,
        "model_set": capacities.settings.model_set,
        "replicas": capacity.replicas,
        "slo": "; ".join(map(str, capacities.settings.slo)),
        "capacity_rps": capacity.passed.rate if capacity.passed else None,
        "first_failed_rps": capacity.failed.rate if capacity.failed else None,
        "ended_by": capacity.ended_by,
        "probe": number,
        "rate": probe.rate,
        "arrivals": offered.arrivals,
        "burstiness": offered.burstiness,
        "seed": offered.seed,
        "duration_s": probe.duration_s,
        "took_s": probe.took_s,
        "confirms": probe.confirms,
        "outcome": probe.outcome,
        "reason": probe.reason,
        **{
            name: getattr(load, name, None)
            for name in ("issued", "answered", "failed", "dropped", "offered_rps", "rps")
        },
        **times_fields("", load.latency if load else None),
        **times_fields("service_", load.service if load else None),
        "generator_cpu_percent": max(load.generator_cpu_percent, default=None) if load else None,
        **memory_fields(run.memory),
        "cpu_busy": run.cpu.busy if run.cpu else None,
        "cpu_steal": run.cpu.steal if run.cpu else None,
        "warnings": " ".join(warning.code for warning in run.warnings),
        "weights": " ".join(dict.fromkeys(model.source for model in capacities.weights)),
        "device": capacities.environment.device,
        "device_name": capacities.environment.device_name,
        "git_revision": capacities.environment.git_revision,
        "started": run.started.isoformat() if run.started else None,
        "ended": run.ended.isoformat() if run.ended else None,
    }
