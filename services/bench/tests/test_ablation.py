"""The ablation: its arithmetic by hand, and whole runs against a thin server."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_server import StubServer, entry
from test_report import Page

from detbench.measure.ablation import CHAIN, repeats_within
from detbench.measure.attribution import gains

LATENCIES_MS = {
    "baseline": 80.0,
    "postprocess": 40.0,
    "channels-last": 50.0,
    "folded": 40.0,
    "compiled": 20.0,
    "grouped": 25.0,
    "fused": 10.0,
    "fused-bf16": 5.0,
}


@pytest.fixture
def stub() -> Iterator[StubServer]:
    entries = [entry(name) for name in CHAIN]
    with StubServer(*entries, entry("invalid", exact=False)) as running:
        running.entries["compiled"]["compiles"] = True
        running.entries["fused"].update(compiles=True, technique="CUDA graphs")
        running.entries["fused-bf16"].update(exact=False, precision="bf16")
        running.latencies_ms = dict(LATENCIES_MS)
        yield running


def the_run(outputs_dir: Path) -> Path:
    (found,) = outputs_dir.glob("*-single-ablation")
    return found


def measured(outputs_dir: Path) -> dict[str, Any]:
    return json.loads((the_run(outputs_dir) / "ablation.json").read_text())


def test_shares_are_of_logarithms_and_add_up_to_one_at_the_fastest_right_step():
    found = gains([80, 40, 50, 10, 5], [True, True, True, True, False], 80)
    assert [gain.speedup for gain in found] == [1, 2, 1.6, 8, 16]
    assert [gain.factor for gain in found] == [None, 2, 0.8, 5, 2]
    shares = [gain.share for gain in found]
    assert shares[0] is None
    assert shares[1] == pytest.approx(math.log(2) / math.log(8))
    assert shares[2] == pytest.approx(math.log(0.8) / math.log(8))
    assert shares[2] < 0
    assert sum(shares[1:4]) == pytest.approx(1)
    assert shares[4] == pytest.approx(1 / 3)


def test_a_step_that_was_not_measured_leaves_its_share_to_its_successor():
    first, missing, last = gains([80, None, 20], [True, True, True], 80)
    assert missing is None
    assert (last.factor, last.share) == (4, 1)
    assert first.factor is None


@pytest.mark.parametrize("latencies", [[80, 90, 100], [80, 80], [80]])
def test_where_nothing_is_faster_there_are_no_shares(latencies):
    assert {gain.share for gain in gains(latencies, [True] * len(latencies), 80)} == {None}


def test_without_a_baseline_there_are_factors_only():
    first, second = gains([40, 20], [True, True], None)
    assert (first.speedup, first.factor, first.share) == (None, None, None)
    assert (second.speedup, second.factor, second.share) == (None, 2, None)


def test_a_faster_step_that_is_wrong_is_not_what_shares_are_of():
    found = gains([80, 40, 1], [True, True, False], 80)
    assert found[1].share == 1


@pytest.mark.parametrize(("latency_ms", "repeats"), [(1, 200), (100, 100), (10_000, 5), (0, 200)])
def test_repeats_fill_the_time_within_bounds(latency_ms: float, repeats: int):
    assert repeats_within(10, [latency_ms] * 5) == repeats


def test_an_ablation_measures_every_step_alone_and_reports(detbench, stub: StubServer, tmp_path: Path, capsys):
    ablation = ("run", "--ablation", "--host", stub.host, "--max-images", "2", "--concurrency", "2")
    assert detbench(*ablation, "--batch-sizes", "4", "1") == 0
    found = measured(tmp_path / "outputs")
    assert [step["implementation"]["name"] for step in found["steps"]] == list(CHAIN)
    assert [step["label"] for step in found["steps"]] == [*list(CHAIN.values())[:6], "+ CUDA graphs", "+ bf16"]
    assert (found["problems"], found["left_out"], found["settings"]["batch_sizes"]) == ([], {}, [1, 4])
    assert found["ended"]
    for step in found["steps"]:
        info = step["implementation"]
        assert (info["load_s"], info["kernels_per_request"]) == (1.5, 1234)
        assert info["compile_s"] == (60.25 if info["name"] in ("compiled", "fused") else None)
        for timing, batch_size in zip(step["timings"], (1, 4), strict=True):
            latency_ms = LATENCIES_MS[info["name"]] * batch_size
            assert timing["median_ms"] == pytest.approx(latency_ms)
            assert timing["lower_quartile_ms"] <= latency_ms <= timing["upper_quartile_ms"]
            assert timing["images_per_s"] == pytest.approx(1e3 / LATENCIES_MS[info["name"]])
            assert timing["gain"]["speedup"] == pytest.approx(80 / LATENCIES_MS[info["name"]])
            assert timing["vram"]["peak_mb"] == 812
            assert len(timing["latencies_ms"]) == min(200, int(10_000 / latency_ms))
        assert step["comparison"]["gate"]["passed"]
    shares = {step["implementation"]["name"]: step["timings"][0]["gain"]["share"] for step in found["steps"]}
    assert shares["channels-last"] < 0
    assert sum(shares[name] for name in list(CHAIN)[1:7]) == pytest.approx(1)

    run_dir = the_run(tmp_path / "outputs")
    with (run_dir / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["batch_size"], row["implementation"]) for row in rows] == [(b, n) for b in "14" for n in CHAIN]
    assert [float(row["share"] or 0) for row in rows[:8]] == [share or 0 for share in shares.values()]
    markdown = (run_dir / "ablation.md").read_text()
    assert "| 1 | + CUDA graphs | fused | 10.0 | 9.0–10.2 | 100 | 8.00× | 2.50× | 44 % | 812 |" in markdown
    assert "| baseline | reference | fp32 | 1.5 | – | 1,234 | 0 | 0 | 1.0000 | 1.0000 | passed |" in markdown
    page = Page((run_dir / "ablation.html").read_text())
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 3
    assert "fused is the fastest exact step: 10.0 ms for 1 image, 8.00 times baseline" in page.text
    printed = capsys.readouterr().out
    assert "compiled: loading (torch.compile: minutes the first time)" in printed
    assert str(run_dir / "ablation.html") in printed.replace("\n", "")


def test_one_is_loaded_at_a_time_and_its_vram_peak_is_its_own(detbench, stub: StubServer):
    stub.entries["invalid"]["loaded"] = ["single"]
    steps = ("--implementations", "folded", "baseline", "--repeats", "7")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 0
    calls = [call for call in stub.calls if not call.startswith("/infer")]
    in_turn = [
        [
            f"/implementations/{name}/load",
            "/vram/reset",
            f"/time/{name} 1 x 7",
            f"/implementations/{name}/unload",
            f"/implementations/{name}/kernels",
        ]
        for name in ("baseline", "folded")
    ]
    reference = ["/implementations/baseline/load", "/implementations/baseline/unload"]
    assert [call for call in calls if "invalid" not in call] == [*reference, *in_turn[0], *in_turn[1]]
    assert calls.index("/implementations/invalid/unload") < calls.index("/vram/reset")


def test_what_cannot_run_is_left_out_with_the_reason(detbench, stub: StubServer, tmp_path: Path):
    del stub.entries["grouped"]
    stub.entries["compiled"]["unavailable"] = "there is no compiler"
    stub.entries["fused"]["unsupported"] = {"single": "no two members match"}
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", "--repeats", "5") == 0
    found = measured(tmp_path / "outputs")
    assert found["left_out"] == {
        "compiled": "there is no compiler",
        "grouped": "the server does not have it",
        "fused": "no two members match",
    }
    assert len(found["steps"]) == 5
    report = (the_run(tmp_path / "outputs") / "ablation.md").read_text()
    assert "- fused is left out: no two members match" in report


def test_a_step_that_fails_is_a_problem_and_the_others_are_measured(detbench, stub: StubServer, tmp_path: Path):
    stub.refusals = {"/folded/load": (503, "out of memory"), "/time/grouped": (409, "cannot run that")}
    stub.boxes["channels-last"] = [12.0, 20.0, 110.0, 220.0]
    stub.boxes["fused-bf16"] = [11.0, 20.0, 110.0, 220.0]
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", "--repeats", "5") == 1
    found = measured(tmp_path / "outputs")
    exact, folded, grouped = found["problems"]
    assert exact.startswith("channels-last claims to be exact and is not")
    assert folded.startswith("folded was not measured")
    assert folded.endswith("out of memory")
    assert grouped.startswith("grouped, batches of 1: ")
    steps = {step["implementation"]["name"]: step for step in found["steps"]}
    assert list(steps) == [name for name in CHAIN if name != "folded"]
    assert steps["grouped"]["timings"] == []
    assert steps["grouped"]["comparison"]["gate"]["passed"]
    # What follows a step that was not timed is compared with the step before it.
    assert steps["fused"]["timings"][0]["gain"]["factor"] == 2
    assert steps["fused-bf16"]["timings"][0]["gain"]["speedup"] == 16


def test_where_kernels_cannot_be_counted_the_cell_is_not_applicable_and_a_line_says_why(
    detbench, stub: StubServer, tmp_path: Path, capsys
):
    stub.refusals = {"/folded/kernels": (500, "it took more than 600 s")}
    steps = ("--implementations", "baseline", "folded", "--repeats", "5")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 0
    found = measured(tmp_path / "outputs")
    assert [step["implementation"]["kernels_per_request"] for step in found["steps"]] == [1234, None]
    assert all(step["comparison"] for step in found["steps"])
    assert "kernels per request are n/a" in capsys.readouterr().out.replace("\n", " ")
    report = (the_run(tmp_path / "outputs") / "ablation.md").read_text()
    assert "| folded | exact | fp32 | 1.5 | – | n/a |" in report


def test_without_a_reference_the_speed_is_measured_all_the_same(detbench, stub: StubServer, tmp_path: Path):
    stub.refusals = {"/infer/baseline": (503, "not today")}
    steps = ("--implementations", "baseline", "postprocess", "--repeats", "5")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 1
    found = measured(tmp_path / "outputs")
    assert found["problems"][0].startswith("outputs cannot be compared")
    assert [(len(step["timings"]), step["comparison"]) for step in found["steps"]] == [(1, None)] * 2
    page = (the_run(tmp_path / "outputs") / "ablation.html").read_text()
    assert "The outputs were not compared" in page
    assert "postprocess is the fastest step that claims to be exact (it was not compared): 40.0 ms for 1 image" in page


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--ablation", "--implementations", "invalid"), "'invalid' is no step of the ablation; those are baseline"),
        (("--ablation", "--model-set", "other"), "no step can run: baseline: it cannot run other"),
        (("--repeats", "5"), "add --ablation"),
        (("--batch-sizes", "4"), "add --ablation"),
    ],
)
def test_what_is_no_ablation_is_told_in_one_line(detbench, stub: StubServer, capsys, arguments, reason: str):
    assert detbench("run", "--host", stub.host, *arguments) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "Traceback" not in error


def test_a_terminated_ablation_keeps_what_was_measured_and_reports_it(stub: StubServer, data_dir: Path, tmp_path: Path):
    stub.infer_s = 0.5
    environment = os.environ | {"BENCHMARK_OUTPUTS_DIR": str(tmp_path), "BENCHMARK_DATA_DIR": str(data_dir)}
    arguments = ("--ablation", "--host", stub.host, "--model-set", "single", "--repeats", "5")
    ablation = subprocess.Popen([sys.executable, "-m", "detbench", "run", *arguments], env=environment)
    while not any("/time/postprocess" in call for call in stub.calls):
        time.sleep(0.05)
        assert ablation.poll() is None
    time.sleep(0.3)
    ablation.send_signal(signal.SIGTERM)
    assert ablation.wait(60) == 130
    found = measured(tmp_path)
    assert [step["implementation"]["name"] for step in found["steps"]] == ["baseline", "postprocess"]
    assert found["ended"] is None
    assert "did not end" in (the_run(tmp_path) / "ablation.html").read_text()


def test_the_command_report_makes_an_ablations_reports_again(detbench, stub: StubServer, tmp_path: Path, capsys):
    steps = ("--implementations", "baseline", "--repeats", "5", "--max-images", "1")
    assert detbench("run", "--ablation", "--host", stub.host, *steps) == 0
    page = the_run(tmp_path / "outputs") / "ablation.html"
    page.unlink()
    assert detbench("report") == 0
    assert page.exists()
    assert str(page) in capsys.readouterr().out.replace("\n", "")
