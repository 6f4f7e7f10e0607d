"""Locust as a person starts it, against a thin server: hosts, clocks, metrics, exit statuses."""

import contextlib
import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stub_server import StubServer, entry

from detbench.measure.server_process import free_port

LOCUSTFILE = Path(__file__).parents[1] / "src" / "detbench" / "load" / "locustfile.py"


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer(entry("slow")) as server:
        server.infer_s = 0.05
        yield server


class Locust:
    """Calls Locust in a folder of its own; `environment` is what it is called with."""

    def __init__(self, folder: Path, data_dir: Path) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("BENCHMARK_")} | {
            "BENCHMARK_IMPLEMENTATION": "slow",
            "BENCHMARK_MODEL_SET": "single",
            "BENCHMARK_DATA_DIR": str(data_dir),
            "BENCHMARK_MAX_IMAGES": "2",
        }
        self.environment.pop("LOCUST_HOST", None)
        self.master_port = str(free_port())

    def command(self, *arguments: object) -> list[str]:
        ports = ("--master-port", self.master_port, "--master-bind-port", self.master_port)
        return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *ports, *(str(each) for each in arguments)]

    def start(self, *arguments: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, seconds: int = 1) -> tuple[int, str]:
        """A load of two users without the web UI; exit status and log."""
        load = ("--headless", "-u", "2", "-r", "2", "-t", f"{seconds}s", "--csv", self.folder / "load")
        process = self.start(*arguments, *load, "--only-summary")
        try:
            _, log = process.communicate(timeout=120)
        finally:
            process.kill()
        return process.returncode, log

    def rows(self, what: str = "stats") -> list[dict[str, str]]:
        with (self.folder / f"load_{what}.csv").open() as file:
            return list(csv.DictReader(file))


@pytest.fixture
def locust(tmp_path: Path, data_dir: Path) -> Locust:
    return Locust(tmp_path, data_dir)


def users_by_little(row: dict[str, str]) -> float:
    """Rate times latency: the number of users of a closed loop, where the rate is of the time that it ran."""
    return float(row["Requests/s"]) * float(row["Average Response Time"]) / 1e3


# ── The host ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variable", [pytest.param("LOCUST_HOST", marks=pytest.mark.slow), "BENCHMARK_HOST"])
def test_the_host_may_come_from_a_variable(stub, locust: Locust, variable: str):
    locust.environment[variable] = stub.host
    status, log = locust.run()
    assert status == 0, log
    assert int(locust.rows()[0]["Request Count"]) > 10


@pytest.mark.slow
def test_without_a_host_it_is_port_8000_of_this_machine(locust: Locust):
    with contextlib.ExitStack() as stack:
        try:
            stub = stack.enter_context(StubServer(entry("slow"), port=8000))
        except OSError as error:
            pytest.skip(f"port 8000: {error}")
        status, log = locust.run()
        assert status == 0, log
        assert stub.calls.count("/infer/slow") > 10


@pytest.mark.parametrize("written", ["{0}/", pytest.param("{1}", marks=pytest.mark.slow)])
def test_a_host_is_taken_as_it_is_meant(stub, locust: Locust, written: str):
    status, log = locust.run("--host", written.format(stub.host, stub.host.removeprefix("http://")))
    assert status == 0, log
    assert set(stub.calls) == {"/implementations/slow/load", "/infer/slow"}


@pytest.mark.parametrize("host", ["ftp://localhost", "http://localhost:99999"])
def test_a_host_that_is_none_is_told_in_one_line(locust: Locust, host: str):
    status, log = locust.run("--host", host)
    assert status == 2
    assert log.count(f"no load: '{host}' is no base URL of a server, such as http://localhost:8000") == 1
    assert "Traceback" not in log


# ── The clocks ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("processes", [(), pytest.param(("--processes", "2"), marks=pytest.mark.slow)])
def test_run_time_and_statistics_begin_when_the_load_does(stub, locust: Locust, processes: tuple[str, ...]):
    stub.load_s = 4
    status, log = locust.run("--host", stub.host, *processes, seconds=3)
    assert status == 0, log
    row = locust.rows()[0]
    assert users_by_little(row) == pytest.approx(2, rel=0.35)
    # The last second is in the file, too.
    assert stub.calls.count("/infer/slow") - int(row["Request Count"]) <= 2
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_master_that_is_quicker_than_its_workers_waits_for_them(stub, locust: Locust, tmp_path: Path):
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import gevent\nfrom locust import events\nfrom locust.runners import WorkerRunner\n"
        "@events.init.add_listener\ndef be_late(environment, **_):\n"
        "    gevent.sleep(3 if isinstance(environment.runner, WorkerRunner) else 0)\n"
        "from detbench.load.locustfile import DetectorUser\n"
    )
    status, log = locust.run("-f", slow, "--host", stub.host, "--processes", "2", seconds=5)
    assert status == 0, log
    assert "Traceback" not in log
    assert int(locust.rows()[0]["Request Count"]) > 10


def started_in_web_ui(process: "subprocess.Popen[str]", port: int, workers: int, **form: object) -> httpx.Client:
    """Wait for the web UI and its workers, and start two users."""
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
    while True:
        assert process.poll() is None
        with contextlib.suppress(httpx.TransportError):
            if len(client.get("/stats/requests").json().get("workers", [])) == workers:
                break
        time.sleep(0.2)
    swarm(client, **form)
    return client


def swarm(client: httpx.Client, **form: object) -> None:
    answer = client.post("/swarm", data={"user_count": "2", "spawn_rate": "2"} | form).json()
    assert answer["success"] is True


def wait_for_state(client: httpx.Client, *states: str) -> None:
    while client.get("/stats/requests").json()["state"] not in states:
        time.sleep(0.1)


@pytest.fixture(params=[pytest.param(0, marks=pytest.mark.slow), 1], ids=["alone", "with a worker"])
def web_ui(
    request, stub, locust: Locust
) -> Iterator[tuple[Callable[..., httpx.Client], list["subprocess.Popen[str]"]]]:
    port = free_port()
    ui = ("--host", stub.host, "--web-host", "127.0.0.1", "--web-port", port)
    processes = [locust.start(*ui, *(("--master",) if request.param else ()))]
    if request.param:
        processes.append(locust.start("--worker"))
    try:
        yield lambda **form: started_in_web_ui(processes[0], port, request.param, **form), processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_the_run_time_of_the_web_ui_begins_when_the_load_does(stub, web_ui):
    stub.load_s = 4
    start, _ = web_ui
    client = start(run_time="6s")  # a worker reads its photos in the first of it
    wait_for_state(client, "spawning")
    wait_for_state(client, "running")
    wait_for_state(client, "stopped")
    (row, *_) = csv.DictReader(client.get("/stats/requests/csv").text.splitlines())
    assert users_by_little(row) == pytest.approx(2, rel=0.35)
    assert int(row["Failure Count"]) == 0


def test_the_start_form_has_the_open_loop_and_more_senders_send_nothing_twice(stub, web_ui):
    start, _ = web_ui
    fields = {"rate": "12.5", "arrivals": "constant", "burstiness": "0.0", "steps": "", "seed": "3"}
    client = start(**fields)
    wait_for_state(client, "running")
    while len(stub.infer_times_s) < 20:
        time.sleep(0.1)
    swarm(client, **fields, user_count="5")
    while len(stub.infer_times_s) < 60:
        time.sleep(0.1)
    client.get("/stop")
    took_s = stub.infer_times_s[59] - stub.infer_times_s[0]
    assert took_s == pytest.approx(59 / 12.5, rel=0.15)


def test_a_test_that_is_stopped_while_it_loads_does_not_touch_the_next_one(stub, web_ui):
    stub.load_s = 3
    start, _ = web_ui
    client = start(run_time="60s")
    wait_for_state(client, "spawning")
    assert client.post("/stop").json()["success"] is True
    wait_for_state(client, "stopped", "ready")
    swarm(client)
    wait_for_state(client, "running")
    while stub.calls.count("/infer/slow") < 20:
        time.sleep(0.1)
    assert client.get("/stats/requests").json()["state"] == "running"


def test_a_refused_load_ends_the_test_in_the_web_ui_and_another_can_be_started(stub, web_ui):
    stub.refusals["/load"] = (409, "nothing to stack")
    start, _ = web_ui
    client = start()
    while not (errors := client.get("/stats/requests").json()["errors"]):
        time.sleep(0.1)
    assert "409: nothing to stack" in errors[0]["error"]
    wait_for_state(client, "stopped", "ready")
    assert "/infer/slow" not in stub.calls
    stub.refusals.clear()
    swarm(client)
    wait_for_state(client, "running")
    while stub.calls.count("/infer/slow") < 20:
        time.sleep(0.1)


# ── The end ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("processes", [(), pytest.param(("--processes", "2"), marks=pytest.mark.slow)])
def test_a_test_without_an_answer_is_a_failure(stub, locust: Locust, processes: tuple[str, ...]):
    stub.infer_s = 60
    status, log = locust.run("--host", stub.host, *processes, seconds=1)
    assert status == 2
    assert log.count("no request was answered before the test ended") == 1


def test_a_refused_load_is_a_failure_with_its_reason_in_the_files(stub, locust: Locust):
    stub.refusals["/load"] = (409, "nothing to stack")
    status, log = locust.run("--host", stub.host)
    assert status == 2
    assert log.count("no load:") == 1
    (failure,) = locust.rows("failures")
    assert "409: nothing to stack" in failure["Error"]


def test_a_dataset_that_a_worker_lacks_ends_the_test_with_the_reason(stub, locust: Locust):
    status, log = locust.run("--host", stub.host, "--processes", "1", "--dataset", "nowhere", seconds=60)
    assert status == 2
    assert "'nowhere' is neither a folder of images nor a dataset" in locust.rows("failures")[0]["Error"]
    assert "Traceback" not in log


def test_failed_requests_are_a_failure(stub, locust: Locust):
    stub.refusals["/infer/slow"] = (500, "broken")
    status, _ = locust.run("--host", stub.host)
    assert status == 1
    assert "HTTP 500" in locust.rows("failures")[0]["Error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_was_measured_in_the_files(stub, locust: Locust, number: signal.Signals):
    process = locust.start("--host", stub.host, "--headless", "-u", "2", "-r", "2", "--csv", locust.folder / "load")
    try:
        while stub.calls.count("/infer/slow") < 40:
            time.sleep(0.1)
        process.send_signal(number)
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert stub.calls.count("/infer/slow") - int(locust.rows()[0]["Request Count"]) <= 2


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_ends_it_while_it_loads(stub, locust: Locust, number: signal.Signals):
    stub.load_s = 20
    process = locust.start("--host", stub.host, "--headless", "-t", "5s")
    try:
        while "/implementations/slow/load" not in stub.calls:
            time.sleep(0.1)
        process.send_signal(number)
        _, log = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped while the implementation was loading" in log
    assert "Traceback" not in log


# ── The metrics ───────────────────────────────────────────────────────────────────────────────────────────────────


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, OverflowError):
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("", port))
                return first


def samples(port: int) -> dict[str, float]:
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
    families = text_string_to_metric_families(answer.text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_every_process_has_metrics_on_a_port_of_its_own(stub, locust: Locust):
    port = free_ports(3)
    locust.environment["BENCHMARK_METRICS_PORT"] = str(port)
    process = locust.start("--host", stub.host, "--headless", "-u", "2", "-r", "2", "--processes", "2")
    try:
        while stub.calls.count("/infer/slow") < 40:
            assert process.poll() is None
            time.sleep(0.1)
        master, *workers = (samples(port + offset) for offset in range(3))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert master["detbench_users"] == 2
    assert all(worker["detbench_request_duration_seconds_count"] > 5 for worker in workers)


@pytest.mark.parametrize("processes", [(), pytest.param(("--processes", "2"), marks=pytest.mark.slow)])
def test_a_metrics_port_in_use_is_told_and_the_load_goes_on(stub, locust: Locust, processes: tuple[str, ...]):
    port = locust.environment["BENCHMARK_METRICS_PORT"] = stub.host.rpartition(":")[2]
    status, log = locust.run("--host", stub.host, *processes)
    assert status == 0
    assert len(re.findall(f"no metrics for Prometheus on port {port}: .*in use; see --metrics-port", log)) == 1
    assert int(locust.rows()[0]["Request Count"]) > 10


# ── The variables ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("BENCHMARK_MAX_IMAGES", "abc", "must be a whole number from 1"),
        ("BENCHMARK_MAX_IMAGES", "0", "must be a whole number from 1"),
        ("BENCHMARK_METRICS_PORT", "abc", "must be a whole number from 0 to 65535"),
        ("BENCHMARK_METRICS_PORT", "70000", "must be a whole number from 0 to 65535"),
        ("BENCHMARK_IMPLEMENTATION", "fast", "the server has slow"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_variable(stub, locust: Locust, name: str, value: str, reason: str):
    locust.environment[name] = value
    status, log = locust.run("--host", stub.host)
    assert status == 2
    (line,) = log.strip().splitlines()
    assert line.endswith(f"{name}={value}: {reason}")
