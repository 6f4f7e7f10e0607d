"""Locust's master and a worker, against a thin server."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from stub_server import StubServer, entry

from detbench.measure.server_process import free_port

# The locust file with a worker that misses its master sooner than after a minute.
LOCUSTFILE = """
import locust.runners
from detbench.load.locustfile import *
locust.runners.MASTER_HEARTBEAT_TIMEOUT = 2
"""


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer(entry("slow")) as server:
        yield server


def run(stub: StubServer, data_dir: Path, folder: Path, seconds: int) -> tuple[str, list[dict], list[dict]]:
    """Load `stub` with 3 users of one worker; the worker's log, the master's statistics and failures."""
    (folder / "locustfile.py").write_text(LOCUSTFILE)
    environment = os.environ | {
        "BENCHMARK_IMPLEMENTATION": "slow",
        "BENCHMARK_MODEL_SET": "single",
        "BENCHMARK_DATA_DIR": str(data_dir),
        "BENCHMARK_MAX_IMAGES": "1",
    }
    port = str(free_port())
    locust = [sys.executable, "-m", "locust", "-f", str(folder / "locustfile.py"), "--host", stub.host]
    load = ("--headless", "--expect-workers", "1", "-u", "3", "-r", "1", "-t", f"{seconds}s")
    bind = ("--master-bind-host", "127.0.0.1", "--master-bind-port", port)
    worker = subprocess.Popen(
        [*locust, "--worker", "--master-port", port], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        master = [*locust, "--master", *bind, *load, "--csv", str(folder / "load"), "--only-summary"]
        subprocess.run(master, env=environment, capture_output=True, timeout=120)
        _, log = worker.communicate(timeout=30)
    finally:
        worker.kill()
    return log, *(list(csv.DictReader((folder / f"load_{what}.csv").open())) for what in ("stats", "failures"))


@pytest.mark.slow
def test_a_worker_stays_with_its_master_while_an_implementation_takes_long_to_load(stub, data_dir, tmp_path: Path):
    stub.load_s = 5
    log, stats, failures = run(stub, data_dir, tmp_path, seconds=9)
    assert "Didn't get heartbeat" not in log
    assert failures == []
    assert int(stats[-1]["Request Count"]) > 10
    assert stub.calls.count("/implementations/slow/load") == 2  # the master's, and the worker's, which finds it loaded


def test_a_load_that_is_refused_ends_with_the_reason_among_the_failures(stub, data_dir, tmp_path: Path):
    stub.refusals["/load"] = (409, "nothing to stack")
    log, _, failures = run(stub, data_dir, tmp_path, seconds=600)  # it ends by itself
    (failure,) = failures
    assert (failure["Method"], failure["Name"], failure["Occurrences"]) == ("LOAD", "slow single", "1")
    assert "409: nothing to stack" in failure["Error"]
    assert stub.calls == []  # the master has not sent out users
    assert "Got quit message from master" in log
    assert "Traceback" not in log


def test_what_a_stopped_test_prepares_does_not_end_the_next_one(stub, data_dir, tmp_path: Path):
    stub.refusals["/load"] = (409, "nothing to stack")
    script = f"""
from gevent import monkey
monkey.patch_all()
import argparse
import gevent
from locust.env import Environment
from locust.runners import WorkerRunner
from detbench.load.locustfile import note_spawned, prepare_test, start_process
options = argparse.Namespace(implementation="slow", model_set="single", dataset="sample", max_images=1,
                             data_dir={str(data_dir)!r}, metrics_port=0, processes=None, rate=0, steps="",
                             arrivals="", burstiness=0)
environment = Environment(parsed_options=options, host={stub.host!r})
environment.runner = WorkerRunner.__new__(WorkerRunner)  # without a master
environment.runner.greenlet = None
told = []
environment.runner.send_message = told.append
environment.runner.register_message = lambda *_: None
start_process(environment)
prepare_test(environment)
gevent.sleep(1)  # it was refused, and waits until all users are there
prepare_test(environment)
gevent.sleep(1)
note_spawned()
gevent.sleep(1)
print(told)
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert printed.stdout.strip() == "['detbench_give_up']", printed.stderr


# ── The open loop ─────────────────────────────────────────────────────────────────────────────────────────────────


def open_loop(
    stub: StubServer,
    data_dir: Path,
    folder: Path,
    *options: str,
    users: int = 20,
    kill_one_after_s: float | None = None,
) -> tuple[list[dict], str]:
    """The master's statistics of an open loop with so many senders, and its log."""
    environment = os.environ | {
        "BENCHMARK_IMPLEMENTATION": "slow",
        "BENCHMARK_MODEL_SET": "single",
        "BENCHMARK_DATA_DIR": str(data_dir),
        "BENCHMARK_MAX_IMAGES": "1",
    }
    (folder / "locustfile.py").write_text(LOCUSTFILE + "locust.runners.HEARTBEAT_INTERVAL = 0.5\n")
    port = str(free_port())
    locust = [sys.executable, "-m", "locust", "-f", str(folder / "locustfile.py"), "--host", stub.host, *options]
    bind = ("--master-port", port, "--master-bind-port", port)
    load = ("--headless", "-u", str(users), "-r", "20", "--csv", str(folder / "load"), "--only-summary", *bind)
    process = subprocess.Popen([*locust, *load], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        if kill_one_after_s is not None:
            while not (stub.infer_times_s and time.monotonic() - stub.infer_times_s[0] > kill_one_after_s):
                assert process.poll() is None
                time.sleep(0.1)
            psutil.Process(process.pid).children()[0].kill()
        _, log = process.communicate(timeout=120)
    finally:
        process.kill()
    return list(csv.DictReader((folder / "load_stats.csv").open())), log


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(), ("--processes", "3")], ids=["alone", "three workers"])
def test_locust_sends_a_schedule_that_its_workers_share(stub, data_dir, tmp_path: Path, processes: tuple[str, ...]):
    rows, log = open_loop(stub, data_dir, tmp_path, "--rate", "40", "--arrivals", "constant", "-t", "10s", *processes)
    assert "Traceback" not in log
    first_s, *_, last_s = sorted(stub.infer_times_s)
    # What waits for a core on a busy machine is caught up with; a burst would be all 20 senders at once.
    assert len(stub.infer_times_s) == pytest.approx(40 * (last_s - first_s), rel=0.1)
    assert sum(time_s < first_s + 1 for time_s in stub.infer_times_s) < 55
    assert int(rows[-1]["Request Count"]) == pytest.approx(len(stub.infer_times_s), rel=0.1)


@pytest.mark.slow
def test_a_worker_without_a_sender_keeps_no_schedule_from_beginning(stub, data_dir, tmp_path: Path):
    (*_, total), _ = open_loop(stub, data_dir, tmp_path, "--rate", "20", "-t", "8s", "--processes", "3", users=1)
    assert int(total["Request Count"]) > 20


@pytest.mark.slow
def test_a_schedule_goes_on_at_its_rate_when_a_worker_is_killed(stub, data_dir, tmp_path: Path):
    constant = ("--rate", "40", "--arrivals", "constant", "-t", "20s", "--processes", "2")
    _, log = open_loop(stub, data_dir, tmp_path, *constant, kill_one_after_s=2)
    assert "1 of 2 workers are gone: their share was not sent until now" in log
    times_s = np.array(sorted(stub.infer_times_s))
    of_the_last_3_s = times_s[times_s > times_s[-1] - 3]
    assert len(of_the_last_3_s) == pytest.approx(120, rel=0.15)


def test_a_schedule_that_contradicts_itself_is_no_load(stub, data_dir, tmp_path: Path):
    _, log = open_loop(stub, data_dir, tmp_path, "--rate", "40", "--steps", "1s:5", "-t", "5s")
    assert "no load: --rate and --steps exclude each other" in log
