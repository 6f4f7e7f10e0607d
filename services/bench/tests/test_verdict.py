"""The verdict on a run and its exit status, runs that are lengthened, and runs that are resumed after a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_reports import Page, comparison, reported, run, sweep
from scripted_server import ScriptedServer

from detbench.measure.resume import held
from detbench.results.sweep import MeasurementWarning


@pytest.fixture
def steady() -> Iterator[ScriptedServer]:
    """A server that takes 50 ms for every request, as many as come."""
    with ScriptedServer(lambda number, since_s: (0.05, "good")) as server:
        yield server


def command(server: ScriptedServer, photo_dir: Path, *options: str) -> tuple[str, ...]:
    of_server = ("run", "--host", server.host, "--model-set", "single", "--implementations", "scripted")
    return (*of_server, "--dataset", str(photo_dir), "--warmup", "1", *options)


def results(outputs_dir: Path) -> dict[str, Any]:
    """The newest run."""
    return json.loads(max(outputs_dir.glob("*/results.json"), key=lambda path: path.stat().st_mtime).read_text())


def test_an_invalid_run_says_why_and_fails_a_strict_command(detbench, photo_dir: Path, tmp_path: Path, capsys):
    with ScriptedServer(lambda number, since_s: (0.1, "good"), workers=1) as server:
        twice_what_it_can = command(server, photo_dir, "--rate", "20", "--duration", "2")
        assert detbench(*twice_what_it_can) == 0
        assert detbench(*twice_what_it_can, "--strict") == 1
    (made,) = results(tmp_path / "outputs")["runs"]
    assert made["verdict"] == "invalid"
    (reason,) = [each for each in made["warnings"] if each["code"] == "rate-not-achieved"]
    assert reason["invalidates"] is True
    printed = capsys.readouterr().out
    assert f"scripted, 20 requests/s, Poisson: {reason['message']}; {reason['remedy']} (rate-not-achieved)" in printed


def test_the_same_verdict_stands_in_table_page_csv_and_answer(tmp_path: Path):
    doubt = MeasurementWarning(code="cores-taken", message="the host took 40 %", remedy="wait", invalidates=True)
    runs = [run("baseline", 1, 2), run("fastest", 1, 6).model_copy(update={"verdict": "invalid", "warnings": [doubt]})]
    page = Page(reported(tmp_path, sweep(runs=runs, comparisons=[comparison("fastest", 0.0)]))).text
    assert "1 of 2 runs are valid; 1 invalid." in page
    assert "But this run is invalid: the host took 40 %." in page
    markdown = (tmp_path / "results.md").read_text()
    assert "| fastest | 1 user | invalid |" in markdown
    assert "- fastest, 1 user: the host took 40 %; wait (cores-taken)" in markdown
    assert "fastest,mixed,1,1 user,closed,1,,,,,,,,invalid," in (tmp_path / "results.csv").read_text()


def test_the_ceiling_is_no_competitor(tmp_path: Path):
    runs = [run("baseline", 1, 2), run("invalid", 1, 90)]
    page = Page(reported(tmp_path, sweep(runs=runs, comparisons=[comparison("invalid", 9e4)]))).text
    assert "baseline serves the most" in page
    assert "The ceiling: without a model (invalid) server and load test do 90." in page
    assert "invalid does" not in page


def test_a_run_is_lengthened_until_the_percentile_is_certified(steady, detbench, photo_dir: Path, tmp_path: Path):
    lengthened = command(steady, photo_dir, "--users", "4", "--duration", "0.5", "--until", "p90")
    assert detbench(*lengthened) == 0
    (made,) = results(tmp_path / "outputs")["runs"]
    assert made["load"]["latency"]["p90"]["certified"] is True
    assert 64 <= made["load"]["issued"] < 200
    assert made["load"]["issued"] == made["load"]["answered"]


def test_a_lengthened_run_ends_when_it_would_be_too_long(steady, detbench, photo_dir: Path, tmp_path: Path, capsys):
    bounded = ("--rate", "10", "--duration", "1", "--until", "p99", "--max-duration", "2")
    assert detbench(*command(steady, photo_dir, *bounded)) == 0
    (made,) = results(tmp_path / "outputs")["runs"]
    assert made["load"]["latency"]["p99"]["certified"] is False
    assert made["load"]["window_s"] == pytest.approx(2.0)
    assert "requests do not certify p99: 1 s more" in capsys.readouterr().out
    assert detbench(*command(steady, photo_dir, "--steps", "1s:5", "--until", "p99")) == 2
    assert "--until cannot lengthen --steps or --trace" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_is_resumed_and_nothing_is_measured_twice(steady, detbench, photo_dir, tmp_path: Path, capsys):
    outputs = tmp_path / "outputs"
    loads = command(steady, photo_dir, "--users", "1", "2", "3", "--duration", "1", "--repeats", "2")
    environment = os.environ | {"BENCHMARK_OUTPUTS_DIR": str(outputs)}
    killed = subprocess.Popen([sys.executable, "-m", "detbench", *loads], env=environment, stdout=subprocess.DEVNULL)
    while not list(outputs.glob("*/results.json")) or len(results(outputs)["runs"]) < 2:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (run_dir,) = outputs.glob("*-single")
    before = results(outputs)["runs"]
    assert len(before) < 6
    (run_dir / ".scratch-of-the-killed" / "answers").mkdir(parents=True)
    with held(run_dir):
        assert detbench("run", "--resume", str(run_dir)) == 2
    assert "is being measured by another process" in capsys.readouterr().err
    assert detbench("run", "--resume", str(run_dir / "nowhere")) == 2
    assert "is no folder" in capsys.readouterr().err

    assert detbench("run", "--resume", str(run_dir), "--users", "8") == 2
    assert "leave out --users" in capsys.readouterr().err
    assert detbench("run", "--resume", str(run_dir)) == 0
    after = results(outputs)
    assert after["runs"][: len(before)] == before
    made = [(each["round"], each["offered"]["users"]) for each in after["runs"]]
    assert sorted(made) == [(number, users) for number in (1, 2) for users in (1, 2, 3)]
    assert after["ended"]
    assert list(outputs.glob("*-single")) == [run_dir]
    assert (run_dir / "report.html").exists()
    assert not list(run_dir.glob(".scratch-*"))

    assert detbench("run", "--resume", str(run_dir)) == 2
    assert "was measured to its end" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        (("environment", "platform"), "Another", "began with other machine (Another then, Linux now)"),
        (("environment", "versions"), {"torch": "1"}, "began with other software (torch 1 then, nothing now)"),
        (("settings", "images"), 7, "began with other images (7 then, 1 now)"),
    ],
)
def test_a_run_of_another_machine_is_not_resumed(steady, detbench, photo_dir, tmp_path, capsys, where, value, reason):
    assert detbench(*command(steady, photo_dir, "--users", "1", "--duration", "0.5")) == 0
    (path,) = (tmp_path / "outputs").glob("*/results.json")
    found = json.loads(path.read_text()) | {"ended": None}
    part, field = where
    path.write_text(json.dumps(found | {part: found[part] | {field: value}}))
    assert detbench("run", "--resume", str(path.parent)) == 2
    assert reason in capsys.readouterr().err


def test_every_request_is_kept_where_asked_for(detbench, photo_dir: Path, tmp_path: Path):
    script = {3: "error"}
    with ScriptedServer(lambda number, since_s: (0.2, script.get(number, "good"))) as server:
        load = ("--rate", "30", "--arrivals", "constant", "--duration", "2", "--max-in-flight", "4", "--keep-requests")
        assert detbench(*command(server, photo_dir, *load), "--processes", "2") == 0
    (made,) = results(tmp_path / "outputs")["runs"]
    (path,) = (tmp_path / "outputs").glob("*/requests/scripted-load1-round1.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [float(row["scheduled_s"]) for row in rows] == pytest.approx([number / 30 for number in range(60)], abs=1e-4)
    outcomes = Counter(row["outcome"] for row in rows)
    assert (outcomes["ok"], outcomes["dropped"]) == (made["load"]["answered"], made["load"]["dropped"])
    assert outcomes['HTTP 500: {"detail": "broken"}'] == made["load"]["failed"] == 1
    service_ms = [float(row["service_ms"]) for row in rows if row["outcome"] == "ok"]
    assert sum(service_ms) / len(service_ms) == pytest.approx(made["load"]["service"]["mean_ms"], rel=0.01)
    assert all(row["latency_ms"] == "inf" for row in rows if row["outcome"] != "ok")
    assert all((row["sent_s"] == "") == (row["outcome"] == "dropped") for row in rows)
    assert not list((tmp_path / "outputs").glob("*/.scratch-*"))
