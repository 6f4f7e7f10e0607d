"""The stack as a Ray cluster on a real engine: up, load, scale, kill, end. The tests build on each other, in order."""

import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
from running_stack import (
    FILES,
    PORTS,
    Stack,
    addresses_elsewhere,
    assert_without_rights,
    eventually,
    listening,
    panels,
    photo,
    refused_uploads,
)

pytestmark = pytest.mark.timeout(900)
SERVICES = ("inference", "ray-worker", "locust-master", "locust-worker", "prometheus", "pushgateway")
SERVER, GCS, DASHBOARD, AGENT, CLIENT = 8000, 6379, 8265, 52365, 10001
HEALTHY = "sum(ray_serve_deployment_replica_healthy)"
STARTED = "sum(ray_serve_replica_startup_latency_ms_count)"
ANSWERS = 'rate(detserver_requests_total{status="200"}[10s])'
URL = f"http://127.0.0.1:{PORTS['INFERENCE_PORT']}"
# Nobody is refused, however slow a busy machine is.
PATIENT = {"Content-Type": "image/jpeg", "X-Deadline-Ms": "120000"}


@pytest.fixture(scope="module")
def cluster(images: None) -> Iterator[Stack]:
    """The stack as a cluster of one worker, with its defaults."""
    made = Stack(files=(*FILES, "compose.ray.yaml"))
    try:
        made.compose("build", "inference")
        made.up(*SERVICES)
        yield made
    finally:
        made.down(check=False)


@pytest.mark.parametrize("service", ["inference", "ray-worker"])
def test_a_node_of_the_cluster_has_no_rights(cluster: Stack, service: str):
    assert_without_rights(cluster, service)


@pytest.mark.parametrize("service", ["inference", "ray-worker"])
def test_no_port_of_ray_answers_at_an_address_of_the_machine(cluster: Stack, service: str):
    ports = listening(cluster, service) - {SERVER}
    assert AGENT in ports
    assert service == "ray-worker" or {GCS, DASHBOARD, CLIENT} < ports
    for port in sorted(ports):
        for address in addresses_elsewhere():
            with pytest.raises(OSError, match=r"refused|timed out"):
                socket.create_connection((address, port), timeout=5)


@pytest.mark.parametrize(
    ("host", "port"), [("inference", DASHBOARD), ("inference", CLIENT), ("inference", AGENT), ("ray-worker", AGENT)]
)
def test_what_loads_the_cluster_cannot_run_programs_on_it(cluster: Stack, host: str, port: int):
    connect = f"import socket; socket.create_connection(({host!r}, {port}), timeout=5)"
    tried = cluster.docker("exec", cluster.containers("locust-worker")[0], "python", "-c", connect, check=False)
    assert re.search("ConnectionRefusedError|TimeoutError|gaierror", tried.stderr)


def test_prometheus_finds_every_node(cluster: Stack):
    eventually(lambda: all(target["health"] == "up" for target in cluster.targets()))
    eventually(lambda: cluster.value('count(up{job="ray"} == 1)') >= 2)
    eventually(lambda: cluster.value(HEALTHY) == cluster.value("count(detserver_build_info)") == 1)


def test_a_second_worker_takes_its_share_of_a_load(cluster: Stack):
    with cluster.loaded("baseline"):
        scale(cluster, 2)
        eventually(lambda: cluster.value(f"count(sum by (replica) ({ANSWERS}) > 0)") == 2, within_s=180)
        eventually(lambda: cluster.value(HEALTHY) == 2)
        assert cluster.locust_failures() == 0


def test_every_query_of_the_dashboard_has_data_and_no_panel_has_two_lines_of_one_name(cluster: Stack):
    queries = [(title, *target) for title, targets in panels() for target in targets]
    ours = [expression for title, expression, _ in queries if title.startswith("cluster: ")]
    with cluster.loaded("baseline"), refused_uploads("baseline"):
        eventually(lambda: all(cluster.query(expression) for expression in ours))
        lines = Counter(
            (title, named(legend, series["metric"]))
            for title, expression, legend in queries
            for series in cluster.query(expression)
        )
    assert [line for line, times in lines.items() if times > 1] == []


def test_a_killed_worker_is_replaced_and_the_other_serves_meanwhile(cluster: Stack):
    worker = cluster.containers("ray-worker")[0]
    started = cluster.value(STARTED)
    with cluster.loaded("baseline"):
        eventually(lambda: len(replicas()) == 2)
        before = replicas()
        # Not `docker kill`, which counts as a stop by hand: as the kernel does when memory runs out.
        os.kill(int(cluster.docker("inspect", "--format", "{{.State.Pid}}", worker).stdout), signal.SIGKILL)
        assert httpx.get(f"{URL}/ready", timeout=30).status_code == 200
        # Asked of the server: Ray's gauge comes every 5 s, and may never show one that is replaced in 10.
        eventually(lambda: len(now := replicas()) == 2 and len(now - before) == 1, within_s=180)
        eventually(lambda: cluster.value(HEALTHY) == 2 and cluster.value(STARTED) > started)
    assert cluster.docker("inspect", "--format", "{{.RestartCount}}", worker).stdout.strip() == "1"


def test_compare_judges_the_cluster(cluster: Stack):
    compared = cluster.compose("run", "--rm", "-T", "compare", "--implementations", "baseline")
    assert re.search(r"baseline +all .* exact +passed", compared.stdout)


def test_a_worker_that_is_taken_away_and_a_stack_that_is_stopped_answer_what_they_have_accepted(cluster: Stack):
    statuses: list[int] = []

    def send() -> None:
        answer = httpx.post(f"{URL}/infer/baseline", content=photo(), headers=PATIENT, timeout=120)
        statuses.append(answer.status_code)

    for end in (partial(scale, cluster, 1), partial(cluster.compose, "stop")):
        clients = [threading.Thread(target=send) for _ in range(8)]
        for client in clients:
            client.start()
        eventually(lambda: cluster.value("sum(detserver_queue_depth)") > 1, within_s=20)
        end()
        for client in clients:
            client.join()
    assert statuses == [200] * 16


def test_down_leaves_nothing(cluster: Stack):
    assert cluster.leftovers()
    cluster.down()
    assert not cluster.leftovers()


def replicas() -> set[str]:
    """Those that answer the server's question how they are."""
    return {each["replica"] for each in httpx.get(f"{URL}/health", timeout=30).raise_for_status().json()["replicas"]}


def named(legend: str, labels: dict[str, str]) -> str:
    """As Grafana names a series; by its labels where it leaves it without a name."""
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend) or str(labels)


def scale(cluster: Stack, workers: int) -> None:
    cluster.compose("up", "--detach", "--no-recreate", "--scale", f"ray-worker={workers}", "ray-worker")
