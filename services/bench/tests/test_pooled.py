"""The rounds of a run are one row: counts and histograms add up, and the ratio to baseline has an interval."""

import csv
import io

import pytest
from made_reports import run, sweep

from detbench.report.answer import answer
from detbench.report.comma_separated import to_csv
from detbench.report.pooled import pooled
from detbench.report.rows import per_replica, rows_of
from detbench.results.sweep import MeasurementWarning, Run, Sweep


def rounds_of(implementation: str, *rps: float) -> list[Run]:
    return [
        run(implementation, 1, each).model_copy(update={"round": number}) for number, each in enumerate(rps, start=1)
    ]


def measured(*runs: list[Run]) -> Sweep:
    made = sweep(runs=[each for group in runs for each in group])
    return made.model_copy(update={"settings": made.settings.model_copy(update={"repeats": 3})})


def test_counts_add_up_and_the_account_closes():
    rounds = rounds_of("baseline", 10, 20)
    load = pooled(rounds).load
    assert load is not None
    assert load.issued == sum(each.load.issued for each in rounds if each.load)
    assert load.issued == load.answered + load.failed + load.dropped
    assert load.window_s == 40
    assert load.rps == pytest.approx(15)
    assert len(load.series.answered) == 40, "each round has as many seconds as it took, whatever was noted of them"


def test_one_row_has_the_ratio_of_its_rounds_with_an_interval():
    found = measured(rounds_of("baseline", 10, 11, 9), rounds_of("fastest", 30, 33.5, 26.8))
    baseline, fastest = rows_of(found)
    assert baseline.speedup is not None
    assert (baseline.speedup.value, baseline.speedup.low) == (1, None)
    ratio = fastest.speedup
    assert ratio is not None
    assert ratio.low is not None
    assert ratio.high is not None
    assert 2.9 < ratio.low < ratio.value < ratio.high < 3.1, "what slows a whole round cancels"
    (_, row) = csv.DictReader(io.StringIO(to_csv(found)))
    assert [float(row[name]) for name in ("speedup_vs_baseline", "speedup_low", "speedup_high")] == [
        ratio.value,
        ratio.low,
        ratio.high,
    ]
    assert f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) times baseline" in answer(rows_of(found))


def test_each_round_has_replicas_of_its_own():
    rounds = []
    for number, (each, rates) in enumerate(zip(rounds_of("fastest", 30, 31), ((10, 20), (15, 16)), strict=True)):
        assert each.load is not None
        by_replica = {f"{number}{name}": float(rps) for name, rps in zip("ab", rates, strict=True)}
        load = each.load.model_copy(update={"replicas_rps": by_replica})
        rounds.append(each.model_copy(update={"replicas": 2, "load": load}))
    load = pooled(rounds).load
    assert load is not None
    assert load.replicas_rps == {"0a": 10, "0b": 20, "1a": 15, "1b": 16}
    assert per_replica(load) == "10–20"


def test_one_round_has_no_interval():
    _, fastest = rows_of(measured(rounds_of("baseline", 10), rounds_of("fastest", 30)))
    assert fastest.speedup is not None
    assert (fastest.speedup.value, fastest.speedup.low) == (pytest.approx(3), None)
    assert "3.00 times baseline" in answer([fastest])


def test_a_round_that_failed_is_told():
    good, bad = rounds_of("fastest", 30, 30)
    failed = bad.model_copy(update={"verdict": "failed", "reason": "the server ended", "load": None})
    found = pooled([good, failed])
    assert (found.verdict, found.reason) == ("failed", "1 of 2 rounds: the server ended")
    assert found.load is not None


def test_requests_are_few_or_not_in_all_rounds_together():
    few = MeasurementWarning(code="few-requests", message="few", remedy="more", invalidates=False)
    late = MeasurementWarning(code="sent-late", message="late", remedy="earlier", invalidates=True)
    rounds = [each.model_copy(update={"warnings": [few, late]}) for each in rounds_of("fastest", 20, 20)]
    assert [warning.code for warning in pooled(rounds).warnings] == ["sent-late"]
    assert pooled(rounds).verdict == "invalid"
    rounds = [each.model_copy(update={"warnings": [few]}) for each in rounds_of("fastest", 2, 2)]
    (doubt,) = pooled(rounds).warnings
    assert doubt.message.startswith("80 requests")
