"""Limits of the user's: how they are read, what misses them, and what a run that misses one ends with."""

import csv
import json
import math
from pathlib import Path

import pytest
from made_reports import Page, comparison, load, memory, reported, run, sweep
from scripted_server import ScriptedServer

from detbench.results.loads import Objective
from detbench.results.sweep import Run
from detbench.slo import missed, objective


@pytest.mark.parametrize(
    ("text", "figure", "limit", "shown"),
    [
        ("p99=200ms", "p99", 200.0, "p99 ≤ 200 ms"),
        ("p99.9 <= 1.5s", "p99.9", 1500.0, "p99.9 ≤ 1,500 ms"),
        ("max=20s", "max", 20_000.0, "max ≤ 20,000 ms"),
        ("errors=0.1%", "errors", 0.001, "errors ≤ 0.1 %"),
        ("errors=0%", "errors", 0.0, "errors ≤ 0 %"),
        ("memory=1.5GB", "memory", 1500.0, "memory ≤ 1,500 MB"),
    ],
)
def test_a_limit_has_a_figure_a_number_and_a_unit(text: str, figure: str, limit: float, shown: str):
    read = objective(text)
    assert (read.figure, read.limit, str(read)) == (figure, pytest.approx(limit), shown)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no limit such as p99=200ms"),
        ("p99", "is no limit"),
        ("p99=fast", "is no limit"),
        ("p95=200ms", "of errors, memory, p50, p90, p99, p99.9, max"),
        ("p99=200", "is no limit"),
        ("p99=-1ms", "is no limit"),
        ("p99=nan ms", "is no limit"),
        ("p99=200MB", "p99 is in ms or s"),
        ("errors=3ms", "errors is in %"),
        ("memory=2ms", "memory is in MB or GB"),
    ],
)
def test_what_is_no_limit_is_told_with_what_there_is(text: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        objective(text)


LATENCY = [objective("p50=100ms"), objective("p99=149ms"), objective("max=1s")]


def test_a_limit_is_missed_where_the_figure_is_beyond_it_and_not_where_it_is_equal():
    assert [str(miss) for miss in missed(load(10, 100), memory(), LATENCY)] == ["p99 150 ms"]


def test_what_was_not_measured_misses_every_limit():
    slo = [*LATENCY, objective("errors=1%"), objective("memory=9GB")]
    nothing = load(10, 100).model_copy(update={"issued": 0, "latency": None})
    for measured in (None, nothing):
        assert {str(miss).partition(" ")[2] for miss in missed(measured, None, slo)} == {"not measured"}
        assert len(missed(measured, None, slo)) == len(slo)


def test_errors_are_what_failed_and_what_was_dropped():
    bad = load(10, 100).model_copy(update={"issued": 1000, "failed": 2, "dropped": 1})
    assert missed(bad, memory(), [objective("errors=0.3%")]) == []
    (miss,) = missed(bad, memory(), [objective("errors=0.2%")])
    assert str(miss) == "errors 0.3 %"


def test_a_failure_is_beyond_any_limit_of_the_slowest():
    times = load(10, 100).latency
    assert times is not None
    failing = load(10, 100).model_copy(update={"latency": times.model_copy(update={"max_ms": math.inf})})
    (miss,) = missed(failing, memory(), [objective("max=9999s")])
    assert str(miss) == "max ∞"


def limited(each: Run, slo: list[Objective]) -> Run:
    return each.model_copy(update={"missed": missed(each.load, each.memory, slo)})


def test_the_answer_is_the_fastest_that_holds_the_limits(tmp_path: Path):
    slo = [objective("p50=1.5s")]
    runs = [limited(each, slo) for each in (run("baseline", 1, 0.7), run("fastest", 1, 2.1), run("fastest", 8, 2.4))]
    compared = [comparison(name, 0.0) for name in ("baseline", "fastest")]
    settings = sweep().settings.model_copy(update={"slo": slo})
    page = Page(reported(tmp_path, sweep(runs=runs, comparisons=compared, settings=settings, problems=[]))).text
    assert "To hold: p50 ≤ 1,500 ms" in page
    assert "fastest serves the most: 2.1 images per second with 1 user" in page
    assert "It gives the reference's answers and holds p50 ≤ 1,500 ms." in page
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [row["slo_missed"] for row in rows] == ["", "", "p50 3,333 ms"]
    settings = settings.model_copy(update={"slo": [objective("p50=1ms")]})
    runs = [limited(each, settings.slo) for each in runs]
    page = Page(reported(tmp_path, sweep(runs=runs, comparisons=compared, settings=settings, problems=[]))).text
    assert "Nothing whose answers are right holds p50 ≤ 1 ms: baseline, 1 user: p50 1,429 ms" in page


def test_a_run_that_misses_a_limit_ends_with_status_3(detbench, photo_dir: Path, tmp_path: Path, capsys):
    def run_with(*limits: str) -> int:
        with ScriptedServer(lambda number, since_s: (0.05, "error" if number % 10 == 3 else "good")) as server:
            command = ("run", "--host", server.host, "--implementations", "scripted", "--warmup", "1", "--users", "2")
            slo = [part for limit in limits for part in ("--slo", limit)]
            return detbench(*command, "--dataset", photo_dir, "--duration", "1", *slo)

    assert run_with("p50=40s", "errors=50%") == 0
    assert "met" in capsys.readouterr().out
    assert run_with("p50=40s", "errors=2%", "p99=40s") == 3
    found = [json.loads(path.read_text()) for path in sorted((tmp_path / "outputs").glob("*-single*/results.json"))]
    (missing,) = found[-1]["runs"]
    assert [(each["objective"]["figure"], each["seen"]) for each in missing["missed"]][1] == ("p99", "Infinity")
    assert "p99 ∞" in capsys.readouterr().out


def test_where_nothing_can_be_measured_the_limits_are_missed(detbench, photo_dir: Path, capsys):
    nowhere = ("run", "--host", "http://127.0.0.1:9", "--dataset", photo_dir)
    assert detbench(*nowhere) == 2
    assert detbench(*nowhere, "--slo", "p99=1s") == 3
    assert "what is not measured misses its limits" in capsys.readouterr().err
    with ScriptedServer(lambda number, since_s: (0.01, "error" if number > 1 else "good")) as server:
        run_it = ("run", "--host", server.host, "--implementations", "scripted", "--warmup", "1", "--users", "1")
        assert detbench(*run_it, "--dataset", photo_dir, "--duration", "1", "--slo", "p99=9s") == 3
