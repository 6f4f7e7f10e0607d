"""Clusters: measured by number of replicas, their answers by the replica that gave them; by whole runs."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from made_reports import Page
from stub_cluster import StubCluster, serving
from stub_process import StubProcesses
from stub_server import StubServer, entry

from detbench.api.client import ServerClient
from detbench.datasets import Dataset
from detbench.errors import ServerError
from detbench.quality.outputs import collect_by_replica

SWEEP = ("run", "--implementations", "quick", "--users", "8", "--duration", "1", "--warmup", "1", "--max-images", "2")
WITHOUT_RAY = """
import os, sys
if int(os.environ["DETSERVER_REPLICAS"]):
    sys.exit("error: --replicas needs Ray Serve: pip install 'ray[serve]'")
"""


def the_run(folder: Path) -> Path:
    (found,) = [path for path in (folder / "outputs").iterdir() if path.name not in ("reference", "server.log")]
    return found


def results(folder: Path) -> dict[str, Any]:
    return json.loads((the_run(folder) / "results.json").read_text())


@pytest.mark.slow
def test_each_number_of_replicas_has_a_cluster_of_its_own_and_is_compared_with_one(detbench, tmp_path: Path, capsys):
    processes = StubProcesses(tmp_path, entry("baseline"), entry("quick"), device="cpu", infer_s=0.05)
    assert detbench(*SWEEP, "--replicas", "4", "1", "--repeats", "2", "--compare-outputs") == 0
    # One process without replicas is asked for the reference; then 4, 1 in the first round, and 1, 4 in the second.
    assert len(processes.calls()) == 5
    assert {path.name for path in the_run(tmp_path).glob("*.log")} == {
        *("server.log", "server-quick-1-replica.log", "server-quick-4-replicas.log"),
    }
    found = results(tmp_path)
    runs = found["runs"]
    assert [(run["round"], run["replicas"]) for run in runs] == [(1, 4), (1, 1), (2, 1), (2, 4)]
    for run in runs:
        load = run["load"]
        assert len(load["replicas_rps"]) == run["replicas"]
        assert sum(load["replicas_rps"].values()) == pytest.approx(load["rps"])
        assert set(run["audit"]["replicas"]) == set(load["replicas_rps"])
        assert run["memory"]["empty_mb"] is None
    assert found["settings"]["replicas"] == [4, 1]
    (info,) = found["implementations"]
    assert info["load_s"] == 4.5  # not of the call that finds it loaded
    (comparison,) = found["comparisons"]
    assert list(comparison["replicas"].values()) == ["passed"] * 4
    printed = capsys.readouterr().out
    page = Page((the_run(tmp_path) / "report.html").read_text()).text
    with (the_run(tmp_path) / "results.csv").open() as file:
        four, one = csv.DictReader(file)
    for text in (printed, page, (the_run(tmp_path) / "results.md").read_text()):
        assert "efficiency" in text
        assert f"{float(four['speedup_vs_one_replica']):.2f}× [" in text
        assert f"{100 * float(four['efficiency']):.0f} % [" in text
    assert "quick with 4 replicas serves the most" in printed
    assert (four["replicas"], one["replicas"], float(one["speedup_vs_one_replica"])) == ("4", "1", 1.0)
    assert float(four["speedup_vs_one_replica"]) > 2
    assert float(four["replica_rps_min"]) <= float(four["replica_rps_max"]) < float(four["rps"])


@pytest.mark.slow
def test_a_replica_that_answers_wrongly_is_named_alone_and_under_load(detbench, tmp_path: Path, capsys):
    StubProcesses(tmp_path, entry("baseline"), entry("quick"), device="cpu", infer_s=0.02, wrong=(2,))
    assert detbench(*SWEEP, "--replicas", "2", "3", "--compare-outputs", "--processes", "2") == 1
    found = results(tmp_path)
    two, three = found["runs"]
    assert two["audit"]["gate"]["passed"]
    (wrong,) = [name for name, each in three["audit"]["replicas"].items() if each["right"] < each["audited"]]
    assert wrong.startswith("2-")
    assert three["audit"]["replicas"][wrong]["right"] == 0
    assert three["verdict"] == "invalid"
    (comparison,) = found["comparisons"]
    assert comparison["replica"] == wrong
    assert comparison["overall"]["largest_box_difference_px"] == 1
    assert sorted(comparison["replicas"].values()) == ["failed", "passed", "passed"]
    under_load, alone = found["problems"]
    count = three["audit"]["replicas"][wrong]["audited"]
    assert under_load.startswith("quick with 3 replicas, 8 users: claims to be exact, and ")
    assert f"({count} of {count} by replica {wrong}): " in under_load
    assert f"astronaut.png by replica {wrong}: tf_efficientdet_d0: a coordinate differs by 1 px" in under_load
    assert alone.startswith(f"quick claims to be exact and is not: replica {wrong}: tf_efficientdet_d0: ")
    assert wrong in capsys.readouterr().out  # beside the figures, which are its own
    with (the_run(tmp_path) / "results.csv").open() as file:
        assert [(row["wrong_replicas"], row["worst_replica"]) for row in csv.DictReader(file)] == [
            ("", wrong),
            (wrong, wrong),
        ]


@pytest.mark.slow
def test_a_run_that_was_broken_off_goes_on_with_the_numbers_of_replicas_that_are_missing(detbench, tmp_path: Path):
    processes = StubProcesses(tmp_path, entry("quick"), infer_s=0.02)
    assert detbench(*SWEEP, "--replicas", "1", "2") == 0
    whole, before = results(tmp_path), len(processes.calls())
    broken_off = whole | {"ended": None, "runs": whole["runs"][:1]}
    (the_run(tmp_path) / "results.json").write_text(json.dumps(broken_off))
    assert detbench("run", "--resume", the_run(tmp_path)) == 0
    first, second = results(tmp_path)["runs"]
    assert first == whole["runs"][0]
    assert (second["replicas"], len(second["load"]["replicas_rps"])) == (2, 2)
    assert len(processes.calls()) == before + 2  # one is asked what there is


@pytest.mark.slow
def test_a_replica_with_other_weights_is_told_in_a_line(detbench, tmp_path: Path):
    StubProcesses(tmp_path, entry("quick"), other_weights=(1,))
    assert detbench(*SWEEP, "--replicas", "1", "2") == 1
    (problem,) = results(tmp_path)["problems"]
    assert problem.startswith("quick with 2 replicas: replica 1-")
    assert problem.endswith(") has other weights: tf_efficientdet_d0 eeeeeeeeeeee, not ffffffffffff")


def test_a_cluster_that_runs_is_measured_as_it_is(detbench, tmp_path: Path, capsys):
    with StubCluster(serving("quick"), replicas=("a", "b", "c")) as cluster:
        cluster.infer_s = 0.01
        cluster.device_states = itertools.repeat({"power_w": 300.0, "energy_j": 1e6})  # of one of the replicas
        assert detbench(*SWEEP, "--host", cluster.host) == 0
    (run,) = results(tmp_path)["runs"]
    assert run["replicas"] == 3
    assert list(run["load"]["replicas_rps"]) == ["a", "b", "c"]
    assert run["device"] is None
    rates = [f"{rate:.3g}" for rate in sorted(run["load"]["replicas_rps"].values())]
    printed = capsys.readouterr().out
    assert f" 3 {rates[0]}–{rates[-1]} " in " ".join(printed.split()) or rates[0] == rates[-1]
    assert "efficiency" not in printed
    assert "kernels per request are n/a: POST /implementations/quick/unload answered 409" in printed


def test_a_replica_that_answers_nothing_is_shown(detbench, tmp_path: Path):
    with StubCluster(serving("quick"), replicas=("a", "b")) as cluster:
        assert cluster._idle.get() == "a"  # always busy
        assert detbench(*SWEEP, "--host", cluster.host) == 0
    (run,) = results(tmp_path)["runs"]
    assert run["load"]["replicas_rps"] == {"a": 0.0, "b": pytest.approx(run["load"]["rps"])}


def test_compare_asks_every_replica_and_names_the_one_that_fails(detbench, tmp_path: Path, capsys):
    with StubServer(entry("baseline")) as server:
        assert detbench("reference", "--host", server.host) == 0
    with StubCluster(serving("quick"), replicas=("a", "b")) as cluster:
        assert detbench("compare", "--host", cluster.host) == 0
        (found,) = json.loads((tmp_path / "outputs" / "compare" / "single.json").read_text())
        assert found["replicas"] == {"a": "passed", "b": "passed"}
        cluster.faults["b"] = lambda box: [each + 1.0 for each in box]
        assert detbench("compare", "--host", cluster.host) == 1
        (found,) = json.loads((tmp_path / "outputs" / "compare" / "single.json").read_text())
        assert (found["replica"], found["replicas"]) == ("b", {"a": "passed", "b": "failed"})
        assert "quick: replica b: tf_efficientdet_d0: a coordinate differs by 1 px" in capsys.readouterr().out


def test_compare_tells_other_weights_of_a_part_of_the_replicas_and_refuses_those_of_all(detbench, capsys):
    with StubServer(entry("baseline")) as server:
        assert detbench("reference", "--host", server.host) == 0
    with StubCluster(serving("quick"), replicas=("a", "b")) as cluster:
        cluster.other_weights = {"a"}
        assert detbench("compare", "--host", cluster.host) == 1
        assert "replica a (process " in (printed := capsys.readouterr().out)
        assert "has other weights: tf_efficientdet_d0 eeeeeeeeeeee, not ffffffffffff" in printed
        cluster.other_weights = {"a", "b"}
        assert detbench("compare", "--host", cluster.host) == 2
        assert "does not belong to this comparison: tf_efficientdet_d0 has random weights" in capsys.readouterr().err


def test_a_replica_that_does_not_answer_cannot_be_compared(sample: Dataset):
    with StubCluster(serving("quick"), replicas=("a", "b")) as cluster, ServerClient(cluster.host) as client:
        assert list(collect_by_replica(client, "quick", "single", sample.photos, concurrency=2)) == ["a", "b"]
        cluster.silent = {"a"}
        with pytest.raises(ServerError, match=r"astronaut\.png was answered by b, and the replicas were a, b"):
            collect_by_replica(client, "quick", "single", sample.photos)


def test_a_replica_that_refuses_is_named(sample: Dataset):
    with StubCluster(serving("quick"), replicas=("a",)) as cluster, ServerClient(cluster.host) as client:
        refused = {"replica": "a", "status": 429, "answer": {"detail": "too many requests in work"}}
        cluster.answer_to = lambda *_: [refused]  # type: ignore[method-assign]
        with pytest.raises(ServerError, match="replica a answered 429: too many requests in work"):
            collect_by_replica(client, "quick", "single", sample.photos)


def test_without_ray_the_servers_own_last_line_is_told(detbench, tmp_path: Path, capsys):
    StubProcesses(tmp_path, entry("quick"))
    module = tmp_path / "detserver.py"
    module.write_text(WITHOUT_RAY + module.read_text())
    assert detbench(*SWEEP, "--replicas", "2") == 1
    (problem,) = results(tmp_path)["problems"]
    assert problem.startswith(
        "quick with 2 replicas was not measured: the server ended while starting:\n"
        "error: --replicas needs Ray Serve: pip install 'ray[serve]'\n(exit status 1; the whole log: "
    )
    assert "error: --replicas needs Ray Serve" in capsys.readouterr().out


def test_capacities_are_searched_for_by_number_of_replicas(detbench, tmp_path: Path):
    processes = StubProcesses(tmp_path, entry("quick"), dies_at=("/implementations/quick/load",))
    search = ("capacity", "--implementations", "quick", "--replicas", "1", "2", "--slo", "p90=1s", "--max-images", "1")
    assert detbench(*search) == 3
    assert len(processes.calls()) == 3
    found = json.loads((the_run(tmp_path) / "capacity.json").read_text())
    assert [each["replicas"] for each in found["capacities"]] == [1, 2]
    one, two = found["problems"]
    assert one.startswith("the capacity of quick with 1 replica was not found: the server ended: ")
    assert two.startswith("the capacity of quick with 2 replicas was not found: the server ended: ")


@pytest.mark.slow
def test_the_capacity_of_two_replicas_is_compared_with_that_of_one(detbench, tmp_path: Path, capsys):
    StubProcesses(tmp_path, entry("quick"), infer_s=0.1)
    search = ("--slo", "p90=500ms", "--arrivals", "constant", "--precision", "40%", "--max-duration", "40")
    plan = ("--implementations", "quick", "--replicas", "1", "2", "--max-images", "1", "--max-in-flight", "20")
    assert detbench("capacity", *plan, *search) == 0
    with (the_run(tmp_path) / "capacity.csv").open() as file:
        capacities = {row["replicas"]: float(row["capacity_rps"]) for row in csv.DictReader(file)}
    assert capacities["2"] > capacities["1"]
    assert f"{capacities['2'] / capacities['1']:.2f}×" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("run", "--replicas", "2", "--host", "http://127.0.0.1:9"), "leave one out"),
        (("capacity", "--replicas", "2", "--host", "http://127.0.0.1:9", "--slo", "p99=1s"), "leave one out"),
        (("run", "--replicas", "2", "--ablation"), "leave out --replicas, or --ablation"),
    ],
)
def test_what_contradicts_replicas_is_told_in_a_line(detbench, capsys, arguments: tuple[str, ...], reason: str):
    assert detbench(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert reason in error
    assert len(error.strip().splitlines()) == 1
