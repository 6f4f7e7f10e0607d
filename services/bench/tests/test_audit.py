"""What is right when it is asked alone, and wrong while several requests are in work, by whole sweeps."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from made_reports import comparison, reported, run, sweep
from photo_server import Box, PhotoServer
from stub_server import entry

from detbench.api.schemas import ModelDetections
from detbench.quality.audit import audit
from detbench.quality.outputs import ImageOutput
from detbench.report import read_sweep
from detbench.report.answer import answer
from detbench.report.rows import AUDIT_COLUMN, columns_of, rows_of
from detbench.results.quality import Audit, Gate

SWEEP = ("run", "--implementations", "hasty", "--duration", "2", "--warmup", "1", "--compare-outputs")


def mixed_up(box: Box, others: list[Box]) -> Box:
    return others[0] if others else box


def shaken(box: Box, others: list[Box]) -> Box:
    return moved(box, 1.0 if others else 0.0)


def near(box: Box, others: list[Box]) -> Box:
    return moved(box, 2.0)


def near_and_mixed_up(box: Box, others: list[Box]) -> Box:
    return mixed_up(near(box, others), others)


def moved(box: Box, by: float) -> Box:
    x1, y1, x2, y2 = box
    return [x1 + by, y1, x2 + by, y2]


def swept(detbench, folder: Path, server: PhotoServer, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit status of a sweep of `hasty`, and its results."""
    server.infer_s = 0.02
    status = detbench(*SWEEP, "--host", server.host, *options)
    (results,) = (folder / "outputs").glob("*-single/results.json")
    return status, json.loads(results.read_text())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(mixed_up, "g: the answer to "), (shaken, "tf_efficientdet_d0: a coordinate differs by 1 px, not by less than")],
)
def test_what_is_right_alone_and_wrong_under_load_is_caught(detbench, tmp_path: Path, capsys, fault, reason: str):
    with PhotoServer(entry("baseline"), entry("hasty")) as server:
        server.boxes_of = {"hasty": fault}
        status, found = swept(detbench, tmp_path, server, "--users", "1", "4")
    assert status == 1
    alone, under_load = found["runs"]
    assert found["comparisons"][0]["gate"]["passed"]
    assert alone["audit"]["right"] == alone["audit"]["audited"] == alone["load"]["answered"] > 20
    wrong = under_load["audit"]["audited"] - under_load["audit"]["right"]
    assert wrong > 20
    doubts = [{warning["code"]: warning["message"] for warning in each["warnings"]} for each in (alone, under_load)]
    assert "wrong-under-load" not in doubts[0]
    (problem,) = found["problems"]
    assert problem == f"hasty, 4 users: claims to be exact, and {doubts[1]['wrong-under-load']}"
    assert f"{wrong:,} of {under_load['load']['answered']:,} answers under load are not the reference's: " in problem
    assert reason in problem
    printed = capsys.readouterr().out.replace("\n", "")
    assert reason in printed
    assert f"hasty does {under_load['load']['rps']:.3g}, and its answers under load are wrong" in printed


@pytest.mark.parametrize(
    "load",
    [
        ("--users", "4"),
        pytest.param(("--users", "4", "--processes", "2"), marks=pytest.mark.slow),
        ("--rate", "60", "--max-in-flight", "8", "--processes", "2"),
    ],
)
def test_what_is_right_under_load_too_is_told_so(detbench, tmp_path: Path, capsys, load: tuple[str, ...]):
    with PhotoServer(entry("baseline"), entry("hasty")) as server:
        status, found = swept(detbench, tmp_path, server, *load)
    assert status == 0
    (measured,) = found["runs"]
    audited, answered = measured["audit"], measured["load"]["answered"]
    assert [audited[name] for name in ("answers", "audited", "right", "distinct")] == [*[answered] * 3, 4]
    assert {"wrong-under-load", "partly-audited"}.isdisjoint(warning["code"] for warning in measured["warnings"])
    (run_dir,) = (tmp_path / "outputs").glob("*-single")
    assert (run_dir / "results.md").read_text().count(f"| passed | {answered:,} of {answered:,} |") == 1
    assert f"the reference's answers ({answered:,} of {answered:,} under load)" in capsys.readouterr().out
    assert list(run_dir.glob(".answers*")) == []


@pytest.mark.parametrize(
    ("fault", "status", "verdict", "cell"),
    [(near, 0, "tolerated", "0 of {0:,} (tolerated)"), (near_and_mixed_up, 1, "failed", "0 of {0:,}")],
)
def test_what_claims_less_is_held_to_what_it_is_alone(detbench, tmp_path: Path, fault, status: int, verdict, cell: str):
    with PhotoServer(entry("baseline"), entry("hasty", exact=False)) as server:
        server.boxes_of = {"hasty": fault}
        ended, found = swept(detbench, tmp_path, server, "--users", "4")
    assert ended == status
    (row,) = rows_of(read_sweep(next((tmp_path / "outputs").glob("*-single"))))
    assert row.comparison is not None
    assert row.run.audit is not None
    assert (row.comparison.verdict, row.run.audit.verdict) == ("tolerated", verdict)
    assert row.cells([AUDIT_COLUMN]) == (cell.format(row.run.audit.answers),)
    said = "hasty, 4 users: is near the reference when asked alone, and not under load: tf_efficientdet_d0: "
    assert [problem.startswith(said) for problem in found["problems"]] == [True] * status


def output(name: str, *boxes: Box, score: float = 0.9) -> ImageOutput:
    found = {"model_name": "d0", "boxes": boxes, "scores": [score] * len(boxes), "labels": [1] * len(boxes)}
    return ImageOutput(image=f"{name}.jpg", sha256=name, detections=[ModelDetections.model_validate(found)])


REFERENCE = [output("a", [0, 0, 100, 100]), output("b", [50, 300, 150, 500]), output("empty")]


def audited(*answers: tuple[ImageOutput, int], exact: bool = True, answered: int | None = None) -> Audit:
    counted = [(each.sha256, each.detections, {None: count}) for each, count in answers]
    total = sum(count for _, count in answers)
    return audit(REFERENCE, counted, answered=total if answered is None else answered, exact=exact)


def test_each_answer_counts_as_often_as_it_came():
    found = audited((REFERENCE[0], 30), (REFERENCE[1], 2), (output("a", [0, 0, 101, 100]), 7))
    assert (found.answers, found.audited, found.right, found.distinct) == (39, 39, 32, 3)
    assert found.reasons == ["a.jpg: d0: a coordinate differs by 1 px, not by less than 0.05"]
    assert (found.verdict, str(found)) == ("failed", "32 of 39")


def test_means_are_of_all_answers_together():
    rounded = output("a", [0, 0, 100, 100], score=0.9001)  # 1e-8, where the gate's limit of the mean is 1e-9
    found = audited((REFERENCE[0], 100), (rounded, 1))
    assert (str(found), found.verdict) == ("101 of 101", "passed")
    found = audited((rounded, 100), (REFERENCE[0], 1))
    assert (str(found), found.verdict) == ("101 of 101", "failed")
    assert found.gate.reasons == ["d0: scores MSE 9.9e-09 is not below 1e-09"]


def test_the_tolerance_is_of_all_answers_together():
    far = output("a")
    assert audited((REFERENCE[0], 90), (far, 10), exact=False).verdict == "tolerated"
    assert audited((REFERENCE[0], 70), (far, 30), exact=False).verdict == "failed"
    assert audited((REFERENCE[0], 90), (far, 10), exact=True).verdict == "failed"


def test_the_answer_to_another_photo_is_told_by_its_name_unless_it_finds_nothing():
    swapped = REFERENCE[1].model_copy(update={"sha256": "a"})
    assert audited((swapped, 1)).reasons == ["a.jpg: the answer to b.jpg"]
    nothing = REFERENCE[2].model_copy(update={"sha256": "a"})
    assert audited((nothing, 1)).reasons == [
        "a.jpg: d0: labels accuracy 0.0000 is not 1, 1 detections missed, 0 spurious"
    ]


def test_what_was_not_kept_or_is_of_no_known_photo_is_not_audited():
    found = audited((REFERENCE[0], 30), (output("new", [0, 0, 10, 10]), 4), answered=1234)
    assert (str(found), found.verdict) == ("30 of 30 audited of 1,234", "passed")
    for exact in (True, False):
        nothing = audited((output("new"), 4), exact=exact)
        assert (nothing.gate.reasons, nothing.verdict) == (["no answer was compared"], "failed")


def audited_by(*answers: tuple[ImageOutput, dict[str | None, int]], exact: bool = True) -> Audit:
    counted = [(each.sha256, each.detections, times) for each, times in answers]
    return audit(REFERENCE, counted, answered=sum(sum(times.values()) for _, times in answers), exact=exact)


def test_a_wrong_replica_is_named_with_what_it_answered():
    moved_by_one = output("a", [0, 0, 101, 100])
    found = audited_by((REFERENCE[0], {"x": 30, "y": 30}), (moved_by_one, {"z": 7}), (REFERENCE[1], {"z": 2}))
    assert (str(found), found.distinct, found.verdict) == ("62 of 69", 3, "failed")
    assert {name: (each.right, each.audited) for name, each in found.replicas.items()} == {
        **{"x": (30, 30), "y": (30, 30), "z": (2, 9)},
    }
    said = "d0: a coordinate differs by 1 px, not by less than 0.05"
    assert found.reasons == [f"a.jpg by replica z: {said}"]
    assert f"replica z: {said}" in found.gate.reasons
    assert all(reason.startswith("replica z: ") for reason in found.gate.reasons)


def test_the_means_of_each_replica_are_judged_not_those_of_all_together():
    rounded = output("a", [0, 0, 100, 100], score=0.9001)  # 1e-8, where the gate's limit of the mean is 1e-9
    assert audited((REFERENCE[0], 100), (rounded, 1)).verdict == "passed"
    found = audited_by((REFERENCE[0], {"x": 100}), (rounded, {"y": 1}))
    assert (str(found), found.verdict) == ("101 of 101", "failed")
    assert found.gate.reasons == ["replica y: d0: scores MSE 1.0e-08 is not below 1e-09"]
    assert audited_by((REFERENCE[0], {"x": 100, "y": 100}), (rounded, {"y": 1})).verdict == "passed"


def test_the_tolerance_is_of_each_replica():
    far = output("a")
    found = audited_by((REFERENCE[0], {"x": 90}), (far, {"y": 10}), exact=False)
    assert found.verdict == "failed"
    assert found.tolerance is not None
    assert all(reason.startswith("replica y: ") for reason in found.tolerance.reasons)
    assert audited_by((REFERENCE[0], {"x": 90, "y": 90}), (far, {"y": 10}), exact=False).verdict == "tolerated"


def result(right: int, audited: int = 1234, answers: int = 1234) -> Audit:
    gate = Gate(passed=right == audited, reasons=[] if right == audited else ["d0: 1 detections missed, 0 spurious"])
    return Audit(answers=answers, audited=audited, distinct=8, right=right, gate=gate, tolerance=None)


def test_rounds_add_up_in_every_artefact(tmp_path: Path):
    rounds = [
        ("baseline", 1, 1234, 1234),
        ("baseline", 2, 1000, 1234),
        ("fastest", 1, 1234, 1234),
        ("fastest", 2, 9, 9),
    ]
    runs = [
        run(name, 1, 5.0).model_copy(update={"round": number, "audit": result(right, audited)})
        for name, number, right, audited in rounds
    ]
    made = sweep(runs=runs, comparisons=[comparison("baseline", 0.0), comparison("fastest", 0.0)])
    cells = [row.cells([AUDIT_COLUMN]) for row in rows_of(made)]
    assert cells == [("2,234 of 2,468",), ("1,243 of 1,243 audited of 2,468",)]
    page = reported(tmp_path, made)
    markdown = (tmp_path / "results.md").read_text()
    for (cell,) in cells:
        assert f"| {cell} |" in markdown
        assert cell in page
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    shown = ("audited", "right_under_load", "distinct_answers", "under_load")
    assert [[row[name] for name in shown] for row in rows] == [
        ["2468", "2234", "16", "failed"],
        ["1243", "1243", "16", "passed"],
    ]
    assert [row.right for row in rows_of(made)] == [False, True]
    assert "fastest serves the most" in answer(rows_of(made))


def test_without_an_audit_there_is_no_column():
    assert AUDIT_COLUMN not in columns_of(sweep())
