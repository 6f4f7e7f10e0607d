"""The ablation: whole runs against a thin server, which names the rows."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_reports import Page
from stub_server import StubServer, entry

from detbench.host import CpuShares
from detbench.measure.ablation import batches_within

# Technique, the row that it is added to, and latency.
ROWS: dict[str, tuple[str, str | None, float]] = {
    "baseline": ("sequential eager", None, 80.0),
    "postprocess": ("batched post-processing", "baseline", 40.0),
    "channels-last": ("channels_last", "postprocess", 50.0),
    "folded": ("batch norm folded", "channels-last", 40.0),
    "compiled": ("torch.compile", "folded", 20.0),
    "grouped": ("stacking", "folded", 25.0),
    "fastest": ("fastest of all", None, 10.0),
    "fastest-bf16": ("bf16", "fastest", 5.0),
}


def ablation_entries() -> list[dict[str, Any]]:
    """`ROWS` as the server lists them, and `invalid`, which is no row."""
    entries = [entry(name, technique=technique, adds_to=parent) for name, (technique, parent, _) in ROWS.items()]
    named = {each["name"]: each for each in entries}
    named["compiled"]["compiles"] = named["fastest"]["compiles"] = True
    named["folded"]["recipe"] = {"layout": "channels_last", "fold": True}
    named["fastest-bf16"].update(exact=False, precision="bf16")
    return [*entries, entry("invalid", exact=False)]


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer(*ablation_entries()) as running:
        running.latencies_ms = {name: latency_ms for name, (_, _, latency_ms) in ROWS.items()}
        yield running


def the_run(outputs_dir: Path) -> Path:
    (found,) = outputs_dir.glob("*-single-ablation")
    return found


def measured(outputs_dir: Path) -> dict[str, Any]:
    return json.loads((the_run(outputs_dir) / "ablation.json").read_text())


@pytest.mark.parametrize(("latency_ms", "batches"), [(1, 200), (100, 100), (20_000, 0), (0, 200)])
def test_batches_fill_the_time_within_bounds(latency_ms: float, batches: int):
    assert batches_within(10, [latency_ms] * 5, 200) == batches


def test_an_ablation_measures_every_step_alone_and_reports(detbench, stub: StubServer, tmp_path: Path, capsys):
    ablation = ("run", "--ablation", "--host", stub.host, "--max-images", "2", "--concurrency", "2")
    assert detbench(*ablation, "--batch-sizes", "4", "1") == 0
    found = measured(tmp_path / "outputs")
    assert [step["implementation"]["name"] for step in found["steps"]] == list(ROWS)
    assert [step["label"] for step in found["steps"]] == [
        technique if parent is None else f"+ {technique}" for technique, parent, _ in ROWS.values()
    ]
    assert (found["problems"], found["left_out"], found["settings"]["batch_sizes"]) == ([], {}, [1, 4])
    assert found["ended"]
    for step in found["steps"]:
        info = step["implementation"]
        assert (info["load_s"], info["kernels_per_request"]) == (1.5, 1234)
        assert info["compile_s"] == (60.25 if info["name"] in ("compiled", "fastest") else None)
        assert info["recipe"] == ({"layout": "channels_last", "fold": True} if info["name"] == "folded" else None)
        for timing, batch_size in zip(step["timings"], (1, 4), strict=True):
            latency_ms = ROWS[info["name"]][2] * batch_size
            assert timing["median_ms"] == pytest.approx(latency_ms)
            assert timing["lower_quartile_ms"] <= latency_ms <= timing["upper_quartile_ms"]
            assert timing["images_per_s"] == pytest.approx(1e3 / ROWS[info["name"]][2])
            assert timing["gain"]["speedup"] == pytest.approx(80 / ROWS[info["name"]][2])
            assert timing["memory"]["process_peak_mb"] == 812
            assert timing["memory"]["empty_mb"] is None  # somebody's server
            assert [len(each) for each in timing["rounds_ms"]] == [min(200, int(5_000 / latency_ms))] * 2
        assert step["comparison"]["gate"]["passed"]
    gains = {step["implementation"]["name"]: step["timings"][0]["gain"] for step in found["steps"]}
    shares = {name: gain["share"] for name, gain in gains.items()}
    assert shares["channels-last"] < 0
    assert [name for name, gain in gains.items() if not gain["on_path"]] == ["grouped", "fastest-bf16"]
    assert sum(share for name, share in shares.items() if share and gains[name]["on_path"]) == pytest.approx(1)
    assert gains["grouped"]["versus"] == "folded"
    assert gains["fastest"]["versus"] == "compiled"

    run_dir = the_run(tmp_path / "outputs")
    with (run_dir / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["batch_size"], row["implementation"]) for row in rows] == [(b, n) for b in "14" for n in ROWS]
    assert [float(row["share"] or 0) for row in rows[:8]] == [share or 0 for share in shares.values()]
    markdown = (run_dir / "ablation.md").read_text()
    timings = {step["implementation"]["name"]: step["timings"][0] for step in found["steps"]}
    quartiles = {name: f"{t['lower_quartile_ms']:.1f}–{t['upper_quartile_ms']:.1f}" for name, t in timings.items()}
    assert (
        f"| 1 | fastest of all | fastest | 10.0 | {quartiles['fastest']} | 100 | 8.00× | compiled | 2.00× | 33 % | 812"
        in markdown
    )
    of_grouped = f"25.0 | {quartiles['grouped']} | 40 | 3.20× | folded | 1.60× | (23 %) | 812 |"
    assert f"| 1 | + stacking | grouped | {of_grouped}" in markdown
    assert "| baseline | reference | fp32 | 1.5 | – | – | 1,234 | n/a | 0 | 0 | 1.0000 | 1.0000 | passed |" in markdown
    page = Page((run_dir / "ablation.html").read_text())
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 3
    assert (
        "The fastest exact row is fastest: 10.0 ms for 1 image, 8.00 times baseline, with 812 MB at its peak. Most of "
        "it comes from"
    ) in page.text
    printed = capsys.readouterr().out
    assert "compiled: loading (minutes the first time)" in printed
    assert str(run_dir / "ablation.html") in printed.replace("\n", "")


def test_a_server_of_somebody_holds_one_at_a_time_in_the_order_of_the_names(detbench, stub: StubServer, tmp_path: Path):
    stub.entries["invalid"]["loaded"] = ["single"]
    steps = ("--implementations", "folded", "baseline", "--repeats", "1", "--batches", "7")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 0
    calls = [call for call in stub.calls if not call.startswith("/infer")]
    in_turn = [
        [
            f"/implementations/{name}/load",
            f"/time/{name} 1 x 3",
            "/vram/reset",
            f"/time/{name} 1 x 7",
            f"/implementations/{name}/unload",
            f"/implementations/{name}/kernels",
        ]
        for name in ("folded", "baseline")
    ]
    reference = ["/implementations/baseline/load", "/implementations/baseline/unload"]
    assert [call for call in calls if "invalid" not in call] == [*reference, *in_turn[0], *in_turn[1]]
    assert calls.index("/implementations/invalid/unload") < calls.index("/vram/reset")
    found = measured(tmp_path / "outputs")
    assert found["settings"]["order"] == ["folded", "baseline"]
    assert [step["implementation"]["name"] for step in found["steps"]] == ["baseline", "folded"]
    assert found["steps"][1]["timings"][0]["gain"]["versus"] == "baseline"


def test_a_server_of_somebody_is_measured_after_a_first_load_and_the_report_says_so(
    detbench, stub: StubServer, tmp_path: Path
):
    stub.first_loads = {"compiled"}
    steps = ("--implementations", "compiled", "--repeats", "1", "--batches", "5")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 0
    (step,) = measured(tmp_path / "outputs")["steps"]
    assert step["label"] == "+ batched post-processing + channels_last + batch norm folded + torch.compile"
    assert (step["implementation"]["load_s"], step["implementation"]["first_load_s"]) == (90.5, 90.5)
    assert stub.calls.count("/implementations/compiled/load") == 1


def test_a_row_over_a_gap_is_called_by_all_that_it_adds_to_the_one_that_was_measured(
    detbench, stub: StubServer, tmp_path: Path
):
    steps = ("--implementations", "baseline", "channels-last", "compiled", "--repeats", "1", "--batches", "5")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 0
    assert [step["label"] for step in measured(tmp_path / "outputs")["steps"]] == [
        "sequential eager",
        "+ batched post-processing + channels_last",
        "+ batch norm folded + torch.compile",
    ]


def test_what_cannot_run_is_left_out_with_the_reason(detbench, stub: StubServer, tmp_path: Path):
    stub.entries["compiled"]["unavailable"] = "there is no compiler"
    stub.entries["fastest"]["unsupported"] = {"single": "no two members match"}
    assert (
        detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", "--repeats", "1", "--batches", "5") == 0
    )
    found = measured(tmp_path / "outputs")
    assert found["left_out"] == {"compiled": "there is no compiler", "fastest": "no two members match"}
    assert len(found["steps"]) == 6
    assert found["steps"][-1]["timings"][0]["gain"]["versus"] == "grouped"  # fastest-bf16, over the absent fastest
    report = (the_run(tmp_path / "outputs") / "ablation.md").read_text()
    assert "- fastest is left out: no two members match" in report


def test_a_row_that_the_server_refuses_to_load_is_left_out_and_any_other_failure_is_a_problem(
    detbench, stub: StubServer, tmp_path: Path
):
    stub.refusals["/fastest/load"] = (409, "there are no photographs to calibrate with")
    steps = ("--implementations", "baseline", "fastest", "--repeats", "1", "--batches", "5")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 0
    found = measured(tmp_path / "outputs")
    assert "no photographs to calibrate with" in found["left_out"]["fastest"]
    assert [step["implementation"]["name"] for step in found["steps"]] == ["baseline"]
    stub.refusals["/fastest/load"] = (500, "it fell over")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 1


def test_a_row_that_the_server_adds_appears_with_nothing_else_edited(detbench, stub: StubServer, tmp_path: Path):
    stub.entries["mine"] = entry("mine", technique="my technique", adds_to="folded")
    stub.latencies_ms["mine"] = 30.0
    steps = ("--implementations", "baseline", "folded", "mine", "--repeats", "1", "--batches", "5")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 0
    report = (the_run(tmp_path / "outputs") / "ablation.md").read_text()
    assert "| 1 | + my technique | mine | 30.0 | 27.0–30.0 | 33.3 | 2.67× | folded | 1.33× | 29 % | 812 |" in report


def test_a_step_that_fails_is_a_problem_and_the_others_are_measured(detbench, stub: StubServer, tmp_path: Path):
    stub.refusals = {"/folded/load": (503, "out of memory"), "/time/grouped": (409, "cannot run that")}
    stub.boxes["channels-last"] = [12.0, 20.0, 110.0, 220.0]
    stub.boxes["fastest-bf16"] = [11.0, 20.0, 110.0, 220.0]
    assert (
        detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", "--repeats", "1", "--batches", "5") == 1
    )
    found = measured(tmp_path / "outputs")
    exact, folded, grouped = found["problems"]
    assert exact.startswith("channels-last claims to be exact and is not")
    assert folded.startswith("folded was not measured")
    assert folded.endswith("out of memory")
    assert grouped.startswith("grouped, batches of 1: ")
    steps = {step["implementation"]["name"]: step for step in found["steps"]}
    assert list(steps) == [name for name in ROWS if name != "folded"]
    assert steps["grouped"]["timings"] == []
    assert steps["grouped"]["comparison"]["gate"]["passed"]
    # folded was not measured, and what it adds to is wrong.
    assert steps["compiled"]["timings"][0]["gain"]["versus"] == "postprocess"
    assert steps["fastest-bf16"]["timings"][0]["gain"]["speedup"] == 16


def test_where_kernels_cannot_be_counted_the_cell_is_not_applicable_and_a_line_says_why(
    detbench, stub: StubServer, tmp_path: Path, capsys
):
    stub.refusals = {"/folded/kernels": (500, "it took more than 600 s")}
    steps = ("--implementations", "baseline", "folded", "--repeats", "1", "--batches", "5")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 0
    found = measured(tmp_path / "outputs")
    assert [step["implementation"]["kernels_per_request"] for step in found["steps"]] == [1234, None]
    assert all(step["comparison"] for step in found["steps"])
    assert "kernels per request are n/a" in capsys.readouterr().out.replace("\n", " ")
    report = (the_run(tmp_path / "outputs") / "ablation.md").read_text()
    assert "| folded | exact | fp32 | 1.5 | – | – | n/a |" in report


def test_without_a_reference_the_speed_is_measured_all_the_same(detbench, stub: StubServer, tmp_path: Path):
    stub.refusals = {"/infer/baseline": (503, "not today")}
    steps = ("--implementations", "baseline", "postprocess", "--repeats", "1", "--batches", "5")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 1
    found = measured(tmp_path / "outputs")
    assert found["problems"][0].startswith("outputs cannot be compared")
    assert [(len(step["timings"]), step["comparison"]) for step in found["steps"]] == [(1, None)] * 2
    page = (the_run(tmp_path / "outputs") / "ablation.html").read_text()
    assert "The outputs were not compared" in page
    assert "The fastest row that claims to be exact (it was not compared) is postprocess: 40.0 ms for 1 image" in page


def test_rounds_go_there_and_back_and_are_pooled(detbench, stub: StubServer, tmp_path: Path):
    steps = ("--implementations", "baseline", "folded", "--repeats", "3", "--batches", "5")
    assert detbench("run", "--ablation", "--host", stub.host, "--max-images", "1", *steps) == 0
    timed = [call.split("/")[-1] for call in stub.calls if call.startswith("/time") and call.endswith("1 x 5")]
    assert [each.split()[0] for each in timed] == ["baseline", "folded", "folded", "baseline", "baseline", "folded"]
    assert sum(call.endswith("/kernels") for call in stub.calls) == 2
    found = measured(tmp_path / "outputs")
    assert (found["settings"]["repeats"], found["settings"]["batches"]) == (3, 5)
    for step in found["steps"]:
        (timing,) = step["timings"]
        assert [len(each) for each in timing["rounds_ms"]] == [5, 5, 5]
        assert timing["median_ms"] == pytest.approx(ROWS[step["implementation"]["name"]][2])
        assert step["comparison"]


def test_cores_that_the_host_takes_away_are_told(detbench, stub: StubServer, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("detbench.measure.ablation.CpuWatch.shares", lambda _: CpuShares(busy=0.7, steal=0.12))
    steps = ("--implementations", "baseline", "--repeats", "1", "--batches", "5", "--max-images", "1")
    assert detbench("run", "--ablation", "--host", stub.host, *steps) == 0
    (run_dir,) = (tmp_path / "outputs").glob("*-ablation")
    line = "baseline, batches of 1: the host of this virtual machine took 12% of the cores away meanwhile"
    assert line in capsys.readouterr().out
    for name in ("ablation.md", "ablation.html"):
        assert line in (run_dir / name).read_text()
    (row,) = csv.DictReader((run_dir / "ablation.csv").open())
    assert float(row["cpu_steal"]) == 0.12


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--ablation", "--implementations", "invalid"), "'invalid' is no row of the ablation; those are baseline"),
        (("--ablation", "--model-set", "other"), "no row can run: baseline: it cannot run other"),
        (("--repeats", "1", "--batches", "5"), "add --ablation"),
        (("--batch-sizes", "4"), "add --ablation"),
        (("--reverse",), "add --ablation"),
    ],
)
def test_what_is_no_ablation_is_told_in_one_line(detbench, stub: StubServer, capsys, arguments, reason: str):
    assert detbench("run", "--host", stub.host, *arguments) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_terminated_ablation_keeps_what_was_measured_and_reports_it(stub: StubServer, data_dir: Path, tmp_path: Path):
    stub.infer_s = 0.5
    environment = os.environ | {"BENCHMARK_OUTPUTS_DIR": str(tmp_path), "BENCHMARK_DATA_DIR": str(data_dir)}
    arguments = ("--ablation", "--host", stub.host, "--model-set", "single", "--repeats", "1", "--batches", "5")
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
    steps = ("--implementations", "baseline", "--repeats", "1", "--batches", "5", "--max-images", "1")
    assert detbench("run", "--ablation", "--host", stub.host, *steps) == 0
    page = the_run(tmp_path / "outputs") / "ablation.html"
    page.unlink()
    assert detbench("report") == 0
    assert page.exists()
    assert str(page) in capsys.readouterr().out.replace("\n", "")


def test_a_sweeps_page_shows_the_ablation_beside_it(detbench, stub: StubServer, tmp_path: Path):
    at_stub = ("--host", stub.host, "--max-images", "1", "--implementations", "baseline", "folded")
    assert detbench("run", *at_stub, "--users", "1", "--duration", "1", "--warmup", "1") == 0
    (run_dir,) = (tmp_path / "outputs").glob("*-single")
    assert "Where the speed-up comes from" not in (run_dir / "report.html").read_text()
    assert detbench("run", "--ablation", *at_stub, "--batches", "5") == 0
    assert detbench("report", str(run_dir)) == 0
    page = (run_dir / "report.html").read_text()
    (other,) = (tmp_path / "outputs").glob("*-ablation")
    assert f'<a href="../{other.name}/ablation.html">' in page
    assert "The fastest exact row is folded: 40.0 ms for 1 image, 2.00 times baseline" in page
