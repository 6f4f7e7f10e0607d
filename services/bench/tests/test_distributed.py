"""Locust's master and a worker, against a thin server."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
                             data_dir={str(data_dir)!r}, metrics_port=0, processes=None)
environment = Environment(parsed_options=options, host={stub.host!r})
environment.runner = WorkerRunner.__new__(WorkerRunner)  # without a master
environment.runner.greenlet = None
told = []
environment.runner.send_message = told.append
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
