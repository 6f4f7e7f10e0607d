"""The sweep, end to end: a real server, the real Locust."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stub_server import StubServer, entry

from detbench.measure.server_process import ServerProcess, free_port

LOCUSTFILE = Path(__file__).parents[1] / "src" / "detbench" / "load" / "locustfile.py"

NEW_IMPLEMENTATION = '''
"""An implementation in a file of its own."""

from detserver.implementations.invalid import Invalid


class Newcomer(Invalid):
    """The constant answer under another name."""

    name = "newcomer"
    description = "a new file, and nothing else"
'''


def only_run(outputs_dir: Path) -> Path:
    (found,) = outputs_dir.glob("*-single")
    return found


def results(run_dir: Path) -> dict:
    return json.loads((run_dir / "results.json").read_text())


@contextlib.contextmanager
def peaks_of_new_servers() -> Iterator[list[tuple[datetime, float]]]:
    """Peak resident memory of the servers that this process starts meanwhile, MB, by the time when /proc said so."""
    known, found, ended = {child.pid for child in psutil.Process().children()}, [], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error, OSError):
                    if child.pid in known or child.cmdline()[-2:] != ["-m", "detserver"]:
                        continue
                    if peak := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{child.pid}/status").read_text()):
                        found.append((datetime.now(UTC), int(peak[1]) * 1024 / 1e6))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


@pytest.mark.slow
@pytest.mark.timeout(600)  # three servers, and two processes that count kernels, where others use the cores too
def test_a_sweep_measures_compares_and_reports(detbench, tmp_path: Path, capsys):
    sweep = ("run", "--implementations", "baseline", "invalid", "--users", "1", "2", "--duration", "3", "--warmup", "1")
    with peaks_of_new_servers() as peaks_mb:
        assert detbench(*sweep, "--compare-outputs", "--max-images", "2") == 0
    run_dir = only_run(tmp_path / "outputs")
    found = results(run_dir)
    assert [(run["implementation"], run["offered"]["users"]) for run in found["runs"]] == [
        (name, users) for name in ("baseline", "invalid") for users in (1, 2)
    ]
    for run in found["runs"]:
        assert run["verdict"] in ("valid", "invalid")  # what else the machine does may make it drift
        load = run["load"]
        assert load["failed"] == load["dropped"] == 0
        # Closed loop: users = rate x latency (Little's law), up to what the ends of a short window cut off.
        assert load["rps"] * load["latency"]["mean_ms"] / 1e3 == pytest.approx(run["offered"]["users"], rel=0.35)
        before, device = {"receive", "wait", "decode", "preprocess", "queue"}, {"forward", "postprocess"}
        assert set(load["stages_ms"]) == before | device | {"serialise"}
    for run in found["runs"]:
        # The peak is reset when a run starts; what comes after its end (the comparison) is not the run's.
        within = [peak for at, peak in peaks_mb if at.isoformat() < run["ended"].replace("Z", "+00:00")]
        assert run["memory"]["resident_peak_mb"] == pytest.approx(within[-1], rel=0.05)
        assert run["memory"]["empty_mb"] < run["memory"]["resident_peak_mb"]
    baseline, invalid = found["comparisons"]
    assert baseline["gate"]["passed"] is True
    assert invalid["gate"]["passed"] is False
    assert invalid["overall"]["boxes_mse"] > 100
    for each in found["runs"]:
        right = each["load"]["answered"] if each["implementation"] == "baseline" else 0
        assert (each["audit"]["right"], each["audit"]["audited"]) == (right, each["load"]["answered"])
    assert found["weights"][0]["source"] == "random"
    kernels = {info["name"]: info["kernels_per_request"] for info in found["implementations"]}
    assert kernels["baseline"] > 1000
    assert kernels["invalid"] == 0
    assert found["problems"] == []
    assert found["ended"]
    with (run_dir / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["rps"]) for row in rows] == [run["load"]["rps"] for run in found["runs"]]
    assert all(float(row["memory_peak_mb"]) > 0 for row in rows)
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert {path.name for path in (run_dir / "detections").iterdir()} == {
        "reference.json",
        "baseline.json",
        "invalid.json",
    }
    printed = capsys.readouterr().out
    assert "boxes" in printed
    assert str(run_dir / "report.html") in printed.replace("\n", "")


@pytest.mark.slow
def test_a_killed_server_keeps_what_was_measured_and_names_what_failed(settings, data_dir: Path, tmp_path: Path):
    environment = os.environ | settings | {"BENCHMARK_OUTPUTS_DIR": str(tmp_path), "BENCHMARK_DATA_DIR": str(data_dir)}
    arguments = ("--model-set", "single", "--implementations", "invalid", "baseline", "--users", "1", "2")
    sweep = subprocess.Popen(
        [sys.executable, "-m", "detbench.__main__", "run", *arguments, "--duration", "4", "--warmup", "1"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    runs: list[dict] = []
    while not runs:  # until the first run is on disk
        time.sleep(0.2)
        assert sweep.poll() is None
        runs = [run for path in tmp_path.glob("*-single/results.json") for run in json.loads(path.read_text())["runs"]]
    time.sleep(2)
    (server,) = [child for child in psutil.Process(sweep.pid).children() if child.cmdline()[-2:] == ["-m", "detserver"]]
    server.send_signal(signal.SIGKILL)
    printed, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 1
    found = results(only_run(tmp_path))
    failed = [(run["implementation"], run["offered"]["users"], run["verdict"] == "failed") for run in found["runs"]]
    assert failed[:2] == [("invalid", 1, False), ("invalid", 2, True)]
    # The next implementation has a server of its own.
    assert failed[2:] == [("baseline", 1, False), ("baseline", 2, False)]
    assert found["runs"][0] == runs[0]
    assert "exit status -9" in found["runs"][1]["reason"]
    assert "invalid, 2 users" in printed
    assert (only_run(tmp_path) / "report.html").exists()


FAILED_SERVER = """
import http.server, os, sys, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b'{"detail": "the device is broken", "failed": true}')
        threading.Timer(1, os._exit, (1,)).start()

http.server.HTTPServer(("127.0.0.1", int(os.environ["DETSERVER_PORT"])), Handler).serve_forever()
"""


def test_a_server_that_has_failed_is_waited_for(server: ServerProcess, tmp_path: Path, monkeypatch):
    assert not server.ended()
    (tmp_path / "detserver.py").write_text(FAILED_SERVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with ServerProcess(tmp_path / "server.log") as failed:
        while not failed.ended():  # it may not listen yet
            assert failed.alive()
        assert "exit status 1" in failed.log_tail()


def test_a_server_that_cannot_start_is_told_with_its_log(detbench, monkeypatch, capsys):
    monkeypatch.setenv("DETSERVER_DEVICE", "cuda:77")
    assert detbench("run", "--implementations", "invalid", "--users", "1", "--duration", "1") == 2
    assert "DETSERVER_DEVICE=cuda:77" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--implementations", "nothing"), "no implementation 'nothing'; it has baseline"),
        (("--model-set", "nothing"), "cannot run nothing"),
        (("--dataset", "nowhere"), "neither a folder of images nor a dataset"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(detbench, server: ServerProcess, capsys, arguments, reason: str):
    assert detbench("run", "--host", server.host, "--implementations", "baseline", *arguments) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "Traceback" not in error


def test_locust_runs_by_itself_and_writes_its_csv(server: ServerProcess, data_dir: Path, tmp_path: Path):
    environment = os.environ | {
        "BENCHMARK_IMPLEMENTATION": "invalid",
        "BENCHMARK_MODEL_SET": "single",
        "BENCHMARK_DATASET": "sample",
        "BENCHMARK_DATA_DIR": str(data_dir),
        "BENCHMARK_MAX_IMAGES": "2",
    }
    arguments = ("--headless", "-u", "2", "-r", "2", "-t", "3s", "--csv", str(tmp_path / "load"), "--only-summary")
    ended = subprocess.run(
        [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", server.host, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    with (tmp_path / "load_stats.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["Name"] == "invalid single"
    assert int(row["Request Count"]) > 5
    assert row["Failure Count"] == "0"


def test_the_load_generator_works_where_trio_is_installed(data_dir: Path, tmp_path: Path):
    (tmp_path / "trio.py").write_text("import select\nselect.epoll\n")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "detbench.load.driver", "--host", "http://127.0.0.1:9", "--implementation", "x"),
            *("--model-set", "single", "--dataset", "sample", "--data-dir", str(data_dir), "--max-images", "1"),
            *("--offered", '{"loop": "closed", "users": 1}', "--duration", "1"),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "no answer from http://127.0.0.1:9" in ended.stdout, ended.stderr


def test_a_photo_that_the_server_refuses_is_named_among_the_failures(data_dir: Path):
    with StubServer(entry("x")) as stub:
        stub.refusals = {"/infer/x": (400, "the image is cut off")}
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "detbench.load.driver", "--host", stub.host, "--implementation", "x"),
                *("--model-set", "single", "--dataset", "sample", "--data-dir", str(data_dir), "--max-images", "1"),
                *("--offered", '{"loop": "closed", "users": 1}', "--duration", "1"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    (error,) = json.loads(ended.stdout.splitlines()[-1])["tally"]["errors"]
    assert error.startswith("astronaut.png: HTTP 400: ")


@pytest.mark.slow
def test_prometheus_can_read_a_locust_that_runs(server: ServerProcess, data_dir: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "BENCHMARK_IMPLEMENTATION": "invalid",
        "BENCHMARK_MODEL_SET": "single",
        "BENCHMARK_DATA_DIR": str(data_dir),
        "BENCHMARK_METRICS_PORT": str(port),
    }
    locust = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", server.host]
    with subprocess.Popen([*locust, "--headless", "-u", "2", "-r", "2", "-t", "60s"], env=environment) as process:
        try:
            samples = {}
            while samples.get("detbench_request_duration_seconds_count", 0) < 5:
                assert process.poll() is None
                with contextlib.suppress(httpx.TransportError):
                    families = text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{port}/metrics").text)
                    samples = {sample.name: sample.value for family in families for sample in family.samples}
        finally:
            process.terminate()
    assert samples["detbench_users"] == samples["detbench_target_users"] == 2
    assert samples["detbench_requests_started_total"] >= samples["detbench_request_duration_seconds_count"]


def test_an_answer_without_a_model_of_the_set_is_a_failure(server: ServerProcess, data_dir: Path, monkeypatch):
    """The check itself, on a real answer; in a process of its own, because Locust patches the standard library."""
    script = f"""
from detbench.load.locustfile import check_answer, prepare_workload
from dataclasses import replace
from pathlib import Path
import httpx
workload = prepare_workload({server.host!r}, "invalid", "single", "sample", 1, Path({str(data_dir)!r}))
image = workload.images[0]
body = httpx.post({server.host!r} + "/infer/invalid?model_set=single", content=image.data,
                  headers={{"Content-Type": image.content_type}}).content
check_answer(body, image, workload)
for bad, sent in ((replace(workload, model_names=("a", "b")), body), (workload, b"{{}}"), (workload, body[:-9]),
                  (workload, body.replace(b'"scores":[0.5]', b'"scores":[]'))):
    try:
        check_answer(sent, image, bad)
    except ValueError as error:
        print(error)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "detections of tf_efficientdet_d0, not of a, b"
    assert len(lines) == 4


@pytest.fixture
def extended_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the server's package with one more file, in front of the installed one."""
    package = find_spec("detserver")
    assert package is not None
    assert package.origin is not None
    shutil.copytree(Path(package.origin).parent, tmp_path / "extended" / "detserver")
    (tmp_path / "extended" / "detserver" / "implementations" / "newcomer.py").write_text(NEW_IMPLEMENTATION)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "extended"), prepend=os.pathsep)


@pytest.mark.slow
def test_a_new_file_is_a_new_implementation_everywhere(detbench, extended_package, tmp_path: Path, settings, data_dir):
    # The sweep and the report:
    assert detbench("run", "--implementations", "newcomer", "--users", "1", "--duration", "2", "--warmup", "1") == 0
    run_dir = only_run(tmp_path / "outputs")
    assert results(run_dir)["runs"][0]["implementation"] == "newcomer"
    assert "newcomer" in (run_dir / "report.html").read_text()
    # The API, and the drop-down of Locust's start form:
    with ServerProcess(tmp_path / "server.log", settings | {"DETSERVER_PRELOAD": "none"}) as process:
        process.wait_ready()
        with urllib.request.urlopen(f"{process.host}/implementations") as answer:
            assert "newcomer" in [row["name"] for row in json.load(answer)]
        port = free_port()
        locust = subprocess.Popen(
            [
                *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", process.host),
                *("--web-host", "127.0.0.1", "--web-port", str(port)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            page = ""
            while not page:
                assert locust.poll() is None
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                        page = answer.read().decode()
                except OSError:
                    time.sleep(0.2)
        finally:
            locust.terminate()
            locust.wait()
    arguments = json.loads(re.search(r"window.templateArgs = (\{.*\})", page)[1])["extra_options"]
    assert {"baseline", "invalid", "newcomer"} <= set(arguments["implementation"]["choices"])
    assert arguments["model_set"]["choices"] == ["mixed", "uniform", "single"]
    open_loop = {"rate", "arrivals", "burstiness", "steps", "seed"}
    assert set(arguments) == {"implementation", "model_set", "dataset", "max_images"} | open_loop
