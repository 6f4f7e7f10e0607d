"""A server process for each implementation, by whole runs with a thin server that is started like the real one."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from stub_process import StubProcesses
from stub_server import entry
from test_ablation import ROWS, ablation_entries

LATENCIES_MS = {name: latency_ms for name, (_, _, latency_ms) in ROWS.items()}
ABLATION = ("run", "--ablation", "--max-images", "1", "--repeats", "1", "--batches", "5")


def the_run(folder: Path) -> Path:
    (found,) = [path for path in (folder / "outputs").iterdir() if path.name != "reference"]
    return found


def ablation(folder: Path) -> dict[str, Any]:
    return json.loads((the_run(folder) / "ablation.json").read_text())


def loads(calls: list[str]) -> list[str]:
    return [call.split("/")[2] for call in calls if call.endswith("/load")]


@pytest.fixture
def stub(tmp_path: Path):
    """Makes the module that `detbench`, which runs in tmp_path, starts as its server."""

    def install(**changes: Any) -> StubProcesses:
        return StubProcesses(tmp_path, *ablation_entries(), latencies_ms=LATENCIES_MS, **changes)

    return install


def test_each_row_is_loaded_in_a_process_of_its_own_after_one_for_the_reference(detbench, stub, tmp_path: Path):
    processes = stub(device="cuda:0")
    assert detbench(*ABLATION, "--implementations", "folded", "baseline", "postprocess") == 0
    asked, *measured = processes.calls()
    assert loads(asked) == ["baseline"]  # the reference's
    assert [loads(calls) for calls in measured] == [["folded"], ["baseline"], ["postprocess"]]
    # Kernels are counted after all else, in a server that is ended then.
    assert measured[0][-1].endswith("/kernels")
    assert not any(call.endswith("/unload") for call in measured[0])
    found = ablation(tmp_path)
    assert found["settings"]["host"] is None
    assert [step["implementation"]["name"] for step in found["steps"]] == ["baseline", "postprocess", "folded"]
    for step in found["steps"]:
        memory = step["timings"][0]["memory"]
        assert (memory["process_peak_mb"], memory["empty_mb"]) == (812, 300)
    assert {path.name for path in the_run(tmp_path).glob("*.log")} == {
        *("server.log", "server-folded.log", "server-baseline.log", "server-postprocess.log"),
    }
    report = (the_run(tmp_path) / "ablation.md").read_text()
    assert "| folded | exact | fp32 | 1.5 | – | – | 1,234 | 512 |" in report  # 812 - 300
    assert "with 812 MB at its peak, 512 MB above an empty server" in (the_run(tmp_path) / "ablation.html").read_text()


def test_servers_stay_for_a_sixth_of_the_rounds(detbench, stub, tmp_path: Path):
    processes = stub(device="cpu")
    steps = ("--implementations", "baseline", "folded", "--repeats", "7", "--batches", "7")
    assert detbench("run", "--ablation", "--max-images", "1", *steps) == 0
    measured = processes.calls()[1:]
    assert [loads(calls) for calls in measured] == [[name] for name in ("baseline", "folded") * 4]
    timed = [sum(call.startswith("/time") for call in calls) for calls in measured]
    assert timed == [3, 3, 3, 3, 3, 3, 2, 2]  # the first of each tells how long a batch takes
    for step in ablation(tmp_path)["steps"]:
        assert len(step["timings"][0]["rounds_ms"]) == 7


def test_the_order_can_be_turned_round_and_the_tables_stay(detbench, stub, tmp_path: Path):
    processes = stub()
    assert detbench(*ABLATION, "--implementations", "baseline", "postprocess", "folded", "--reverse") == 0
    assert [loads(calls) for calls in processes.calls()[1:]] == [["folded"], ["postprocess"], ["baseline"]]
    found = ablation(tmp_path)
    assert found["settings"]["order"] == ["folded", "postprocess", "baseline"]
    assert [step["implementation"]["name"] for step in found["steps"]] == ["baseline", "postprocess", "folded"]
    assert [step["timings"][0]["gain"]["versus"] for step in found["steps"]] == [None, "baseline", "postprocess"]


def test_what_a_first_load_made_is_loaded_again_by_a_new_process_and_both_times_are_kept(
    detbench, stub, tmp_path: Path
):
    processes = stub(first_loads=("compiled",))
    assert detbench(*ABLATION, "--implementations", "baseline", "compiled") == 0
    _, baseline, first, warm = processes.calls()
    assert loads(baseline) == ["baseline"]
    assert first == ["/implementations/compiled/load"]
    assert warm[0] == "/implementations/compiled/load"
    assert "/time/compiled" in warm
    infos = [step["implementation"] for step in ablation(tmp_path)["steps"]]
    assert [(info["load_s"], info["first_load_s"]) for info in infos] == [(1.5, None), (1.5, 90.5)]
    assert infos[1]["compile_s"] == 60.25
    report = (the_run(tmp_path) / "ablation.md").read_text()
    assert "| compiled | exact | fp32 | 1.5 | 90.5 | 60.2 | 1,234 |" in report


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_no_memory_cell_is_empty(detbench, stub, tmp_path: Path, device: str):
    stub(device=device)
    names = ("--implementations", "baseline", "invalid")
    assert detbench("run", *names, "--users", "1", "--duration", "1", "--warmup", "1", "--max-images", "1") == 0
    with (the_run(tmp_path) / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["memory_peak_mb"]) for row in rows] == [812, 812]
    assert {row["memory_process_peak_mb"] for row in rows} == {"" if device == "cpu" else "812.0"}
    assert {row["memory_empty_mb"] for row in rows} == {"300.0"}


def test_a_server_that_dies_is_named_with_its_logs_end_and_the_next_has_its_own(detbench, stub, tmp_path: Path, capsys):
    processes = stub(dies_at=("/time/postprocess", "/implementations/folded/load"))
    names = ("--implementations", "baseline", "postprocess", "folded", "compiled")
    assert detbench(*ABLATION, *names) == 1
    found = ablation(tmp_path)
    timed, loaded = found["problems"]
    assert timed.startswith("postprocess, batches of 1: the server ended: ")
    assert loaded.startswith("folded was not measured: the server ended: ")
    for name, problem in (("postprocess", timed), ("folded", loaded)):
        assert "the stub ends itself" in problem
        assert f"(exit status 3; the whole log: {the_run(tmp_path)}/server-{name}.log)" in problem
    assert [loads(calls) for calls in processes.calls()[1:]] == [[name] for name in names[1:]]
    assert {s["implementation"]["name"]: len(s["timings"]) for s in found["steps"]} == {
        **{"baseline": 1, "postprocess": 0, "compiled": 1},
    }
    assert "problem: folded was not measured" in capsys.readouterr().out


def test_a_server_that_dies_over_the_reference_costs_the_comparison_alone(detbench, stub, tmp_path: Path):
    stub(dies_at=("/infer/baseline",))
    assert detbench(*ABLATION, "--implementations", "postprocess") == 1
    found = ablation(tmp_path)
    (problem,) = found["problems"]
    assert problem.startswith("outputs cannot be compared: the server ended: ")
    assert [(len(step["timings"]), step["comparison"]) for step in found["steps"]] == [(1, None)]


SECOND_DOES_NOT_START = """
import pathlib, sys
if (folder := pathlib.Path({folder!r})).joinpath("started").exists() and not folder.joinpath("refused").exists():
    folder.joinpath("refused").touch()
    sys.exit("no memory for the second server")
folder.joinpath("started").touch()
"""


def test_a_server_that_does_not_start_is_a_problem_and_the_others_go_on(detbench, stub, tmp_path: Path):
    stub()
    module = tmp_path / "detserver.py"
    module.write_text(SECOND_DOES_NOT_START.format(folder=str(tmp_path)) + module.read_text())
    assert detbench(*ABLATION, "--implementations", "baseline", "folded") == 1
    found = ablation(tmp_path)
    (problem,) = found["problems"]
    assert problem.startswith("baseline was not measured: the server ended while starting:")
    assert "no memory for the second server" in problem
    assert [step["implementation"]["name"] for step in found["steps"]] == ["folded"]


def test_where_the_first_server_does_not_start_the_command_ends_with_its_log(detbench, tmp_path: Path, capsys):
    (tmp_path / "detserver.py").write_text("raise SystemExit('there is no such device')")
    assert detbench(*ABLATION) == 2
    assert "there is no such device" in capsys.readouterr().err


def test_an_implementation_that_was_not_measured_is_told_to_be_not_run(detbench, tmp_path: Path):
    StubProcesses(tmp_path, entry("x"), entry("y"), dies_at=("/implementations/x/load",))
    sweep = ("run", "--implementations", "x", "y", "--users", "1", "--duration", "1", "--warmup", "1")
    assert detbench(*sweep, "--max-images", "1") == 1
    found = json.loads((the_run(tmp_path) / "results.json").read_text())
    assert {run["implementation"]: run["verdict"] == "not_run" for run in found["runs"]} == {"y": False, "x": True}
    (problem,) = found["problems"]
    assert problem.startswith("x was not measured: the server ended: ")
