"""What more replicas are worth, and what a cluster's judgement is, from figures made by hand."""

import csv
import io
from pathlib import Path

import pytest
from made_reports import Page, comparison, reported, run, sweep

from detbench.api.schemas import ReplicaInfo, VramStatus
from detbench.quality.replicas import gate_of_all, other_weights, worst_of
from detbench.report.comma_separated import to_csv
from detbench.report.output_error import output_error_columns, output_error_rows
from detbench.report.rows import PER_REPLICA_COLUMN, REPLICAS_COLUMN, columns_of, rows_of
from detbench.report.scaling import scaling_rows
from detbench.report.table import markdown_table, scaling_table
from detbench.results.quality import Gate
from detbench.results.sweep import Run, Sweep


def served(implementation: str, replicas: int, *rps: float) -> list[Run]:
    """A round for each rate, of a cluster whose replicas have between 0.8 and 1.2 of the same share of it."""
    rounds = []
    for number, rate in enumerate(rps, start=1):
        made = run(implementation, 8, rate)
        assert made.load is not None
        shares = [1.0] if replicas == 1 else [0.8, *[1.0] * (replicas - 2), 1.2]
        by_replica = {f"{number}-{place}": share * rate / replicas for place, share in enumerate(shares)}
        load = made.load.model_copy(update={"replicas_rps": by_replica})
        rounds.append(made.model_copy(update={"round": number, "replicas": replicas, "load": load}))
    return rounds


def measured(*runs: list[Run], **changes: object) -> Sweep:
    made = sweep(runs=[each for group in runs for each in group], problems=[])
    replicas = list(dict.fromkeys(each.replicas for each in made.runs))
    settings = {"offered": [made.runs[0].offered], "replicas": replicas, "host": None} | changes
    return made.model_copy(update={"settings": made.settings.model_copy(update=settings)})


FASTEST = (
    served("fastest", 1, 10, 10.2, 9.8),
    served("fastest", 2, 19, 19.6, 18.4),
    served("fastest", 4, 32, 33.2, 30.8),
)


def test_every_number_of_replicas_is_compared_with_one_by_the_rounds_that_both_have(tmp_path: Path):
    made = measured(*FASTEST)
    rows = scaling_rows(made, rows_of(made))
    assert rows[0] == ("fastest", "8 users", "1", "10", "9.8–10.2", "1.00×", "100 %")
    assert rows[1] == ("fastest", "8 users", "2", "19", "7.36–11.8", "1.90× [1.85, 1.96]", "95 % [92, 98]")
    assert rows[2] == ("fastest", "8 users", "4", "32", "6.16–9.96", "3.20× [3.06, 3.34]", "80 % [77, 84]")
    text, markdown = Page(reported(tmp_path, made)).text, markdown_table(made)
    assert text.index("Scaling") < text.index("1.90× [1.85, 1.96]") < text.index("Implementations")
    for row in rows:
        assert f"| {' | '.join(row)} |" in markdown
    found = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert [row["replicas"] for row in found] == ["1", "2", "4"]
    assert [float(row["efficiency"]) for row in found] == pytest.approx([1, 0.95, 0.8], abs=0.001)
    assert (found[0]["scaling_low"], float(found[1]["efficiency_low"])) == ("", pytest.approx(0.923, abs=0.001))


def test_numbers_of_replicas_stand_below_each_other_however_they_were_measured():
    baseline = (served("baseline", 2, 4.0), served("baseline", 1, 2.0))
    made = measured(FASTEST[2], FASTEST[0], *baseline)
    assert [row[:3] for row in scaling_rows(made, rows_of(made))] == [
        *(("baseline", "8 users", "1"), ("baseline", "8 users", "2")),
        *(("fastest", "8 users", "1"), ("fastest", "8 users", "4")),
    ]


def test_without_one_replica_there_is_no_efficiency():
    made = measured(*FASTEST[1:])
    assert [row[-2:] for row in scaling_rows(made, rows_of(made))] == [("n/a", "n/a")] * 2
    failed = FASTEST[0][0].model_copy(update={"verdict": "failed", "load": None, "reason": "the server ended"})
    made = measured([failed], FASTEST[1])
    one, two = scaling_rows(made, rows_of(made))
    assert one[3:] == ("–", "–", "n/a", "n/a")
    assert two[5:] == ("n/a", "n/a")


def test_baseline_is_compared_with_by_the_same_number_of_replicas():
    made = measured(served("baseline", 2, 4.0), served("baseline", 1, 2.0), FASTEST[0][:1], FASTEST[1][:1])
    speedups = {row.run.deployment: row.speedup.value for row in rows_of(made) if row.speedup}
    assert speedups["fastest with 1 replica"] == pytest.approx(5)
    assert speedups["fastest with 2 replicas"] == pytest.approx(4.75)


def test_of_a_cluster_that_ran_replicas_are_shown_and_nothing_is_compared():
    made = measured(FASTEST[1][:1], host="http://127.0.0.1:8000")
    (row,) = rows_of(made)
    assert {REPLICAS_COLUMN, PER_REPLICA_COLUMN} <= set(columns_of(made))
    assert row.cells([REPLICAS_COLUMN, PER_REPLICA_COLUMN]) == ("2", "7.6–11.4")
    assert scaling_table(made) is None


def test_without_a_cluster_there_is_nothing_about_replicas():
    made = sweep()
    assert REPLICAS_COLUMN not in columns_of(made)
    assert scaling_table(made) is None
    assert "efficiency" not in markdown_table(made)


def test_the_gate_of_a_cluster_names_whose_reasons_there_are():
    wrong, fine = Gate(passed=False, reasons=["d0: 1 missed", "d0: 2 spurious"]), Gate(passed=True)
    also = Gate(passed=False, reasons=["d0: 1 missed"])
    assert gate_of_all({"a": fine, "b": fine}) == fine
    assert gate_of_all({"a": wrong, "b": fine, "c": also}) == Gate(
        passed=False, reasons=["replicas a, c: d0: 1 missed", "replica a: d0: 2 spurious"]
    )
    assert gate_of_all({None: wrong}) == wrong


def test_a_cluster_is_as_right_as_its_worst_replica():
    right, wrong = comparison("fastest", 2e-7), comparison("fastest", 9e4)
    found = worst_of({"a": right, "b": wrong, "c": comparison("fastest", 3e-7)})
    assert (found.replica, found.replicas) == ("b", {"a": "passed", "b": "failed", "c": "passed"})
    assert (found.overall, found.verdict) == (wrong.overall, "failed")
    assert found.reasons == ["replica b: tf_efficientdet_d0: boxes MSE 9.0e+04 px²"]
    assert worst_of({"a": right, "c": comparison("fastest", 3e-7)}).replica == "c"
    assert worst_of({None: right}) == right


def test_the_table_of_output_error_names_the_worst_replica_where_there_is_one():
    found = worst_of({"a": comparison("fastest", 0.0), "b": comparison("fastest", 2e-7)})
    for comparisons, shown in (([found, comparison("baseline", 0.0)], ["b", "–"]), ([comparison("baseline", 0.0)], [])):
        headings = [column.heading for column in output_error_columns(comparisons)]
        rows = output_error_rows(comparisons)
        assert ("replica" in headings) == bool(shown)
        assert {len(row) for row in rows} == {len(headings)}
        if shown:
            assert [row[headings.index("replica")] for row in rows if row[1] == "all"] == shown


def test_other_weights_are_told_by_replica():
    info = ReplicaInfo(
        **{"replica": "a", "node": "n", "address": "10.0.0.7", "pid": 42, "status": "ok", "detail": None},
        weights={"tf_efficientdet_d0": "f" * 64, "of another set": "0" * 64},
        memory=VramStatus(device="cpu"),
    )
    other = info.model_copy(update={"replica": "b", "weights": info.weights | {"tf_efficientdet_d0": "e" * 64}})
    assert other_weights([info, other], sweep().weights) == [
        "replica b (process 42 at 10.0.0.7) has other weights: tf_efficientdet_d0 eeeeeeeeeeee, not ffffffffffff"
    ]
