"""Several replicas behind one address: equal answers, more of them, and none lost but what a dead one had in work.

A replica takes seconds to start; the order of the tests lets most of them find those that they need.
"""

import asyncio
import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from overload import Client, Outcome, closed_loop, counted, open_loop, percentile, post
from PIL import Image
from running_server import PROCESS, free_port, start
from same_answers import assert_equal

from detserver.__main__ import RAY_ENVIRONMENT
from detserver.postprocess import DetectionOutput

for name, value in RAY_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
ray = pytest.importorskip("ray", reason="ray is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]

# Holds its device for 100 ms without a processor core, as a GPU of its own would.
PLUGIN = """
import time
from detserver.implementations.invalid import Invalid

class Hold(Invalid):
    name = "hold"

    def predict(self, image):
        time.sleep(0.1)
        return super().predict(image)
"""

log = logging.getLogger(__name__)  # --log-cli-level=info shows what docs/cluster.md says

JPEG = {"Content-Type": "image/jpeg"}
QUEUE_SIZE = 8

# On a busy machine more than the 5 s that httpx has by itself.
get, ask = partial(httpx.get, timeout=60), partial(httpx.post, timeout=60)


class Machines:
    """A cluster of five nodes on this machine: the head, which runs no replica, and four that run one each."""

    def __init__(self) -> None:
        from ray import serve
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(True, head_node_args={"num_cpus": 0})
        self.workers = [self.add_node() for _ in range(4)]
        ray.init(address=self.cluster.address, log_to_driver=False)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        serve.start(proxy_location="HeadOnly", http_options={"port": port})

    def add_node(self) -> Any:
        return self.cluster.add_node(num_cpus=1)

    def serve(self, implementation: str, **options: object) -> None:
        """Deploy as `serve run` does from a file; `options` are the deployment's."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        application = {
            "name": "detserver",
            "route_prefix": "/",
            "import_path": "detserver.cluster:application",
            "args": {
                "implementation": implementation,
                "settings": {"queue_size": QUEUE_SIZE, "weights_download": False},
            },
            "deployments": [{"name": "Replica", **options}],
        }
        _get_global_client().deploy_apps(ServeDeploySchema(applications=[application]))

    def scale(self, implementation: str, replicas: int) -> None:
        """Deploy so many replicas, and wait until they and no others serve."""
        self.serve(implementation, num_replicas=replicas)
        until(lambda: self.serves(implementation) and len(self.replicas()) == replicas)

    def serves(self, implementation: str) -> bool:
        with suppress(httpx.TimeoutException):
            return ask(f"{self.url}/implementations/{implementation}/load").is_success
        return False

    def replicas(self) -> list[dict[str, Any]]:
        with suppress(httpx.TimeoutException):
            answer = get(f"{self.url}/health")
            return answer.json()["replicas"] if answer.is_success else []
        return []

    def close(self) -> None:
        from ray import serve

        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()


def until(reached: Callable[[], bool], limit_s: float = 300.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < end, "it was not so in time"
        time.sleep(0.25)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which there is the implementation `hold`."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "plugin.py").write_text(PLUGIN)
    metadata = folder / "plugin-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[detserver.implementations]\nhold = plugin:Hold\n")
    return folder


@pytest.fixture(scope="module")
def machines(plugin: Path, quick: dict[str, str]) -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(plugin), prepend=":")
        for name, value in quick.items():
            patch.setenv(name, value)
        started = Machines()
        yield started
        started.close()


@pytest.fixture
def holding(machines: Machines) -> Machines:
    """Four replicas of `hold`."""
    machines.scale("hold", 4)
    return machines


@pytest.fixture(scope="module")
def content(photos: list[Path]) -> bytes:
    """A photograph so small that five nodes, a proxy and the clients find time beside its decoding on two cores."""
    file = io.BytesIO()
    with Image.open(photos[0]) as photo:
        photo.resize((128, 128)).save(file, "JPEG")
    return file.getvalue()


def test_every_replica_gives_the_answers_of_one_server(machines: Machines, server, photos: list[Path]):
    machines.scale("baseline", 2)
    content = photos[-1].read_bytes()
    ours = server.infer("baseline", content=content, headers=JPEG).json()
    url = f"{machines.url}/replicas/infer/baseline"
    answers = ask(url, content=content, headers=JPEG).json()
    assert [each["status"] for each in answers] == [200, 200]
    assert {each["replica"] for each in answers} == {each["replica"] for each in machines.replicas()}
    for each in answers:
        assert each["answer"]["replica"] == each["replica"]
        assert_equal([_found(each["answer"])], [_found(ours)])  # which has other threads
    assert answers[0]["answer"]["detections"][0]["boxes"] == answers[1]["answer"]["detections"][0]["boxes"]
    assert len({each["node"] for each in machines.replicas()}) == 2
    models = get(f"{server.url}/model-sets/quick").json()["models"]
    weights = {model["model_name"]: model["fingerprint"] for model in models}
    assert all(each["weights"] == weights for each in machines.replicas())
    refused = ask(url, content=b"no picture", headers=JPEG).json()
    assert [each["status"] for each in refused] == [400, 400]
    assert ask(f"{machines.url}/replicas/infer/vmap", content=content, headers=JPEG).json()[0]["status"] == 409


def test_ray_costs_milliseconds(machines: Machines, server, content: bytes):
    machines.scale("invalid", 1)
    message = post("invalid", content)
    p50_ms: dict[str, list[float]] = {machines.url: [], server.url: []}
    for _ in range(5):
        for url, each in p50_ms.items():
            outcomes = asyncio.run(_one_user(url, message, lasting(2.0)))
            each.append(1e3 * percentile([outcome.took_s for outcome in outcomes], 50))
    log.info("p50 in ms, through Ray and without: %s", list(p50_ms.values()))
    assert min(p50_ms[machines.url]) - min(p50_ms[server.url]) < 60  # on an idle machine 8: docs/cluster.md


def test_four_replicas_serve_3_6_times_as_much_as_one(machines: Machines, content: bytes):
    rates = {}
    for replicas in (1, 4):
        machines.scale("hold", replicas)
        load = partial(closed_loop, machines.url, post("hold", content), 4 * replicas, 5.0)
        rates[replicas] = max(asyncio.run(load()) for _ in range(2))  # others may use the cores meanwhile
    log.info("requests per second, by replicas: %s", rates)
    assert rates[1] == pytest.approx(10, rel=0.2)
    assert rates[4] >= 3.6 * rates[1]


def test_a_cluster_says_of_all_replicas_what_a_server_says_of_itself(holding: Machines, content: bytes):
    message = post("hold", content)
    asyncio.run(closed_loop(holding.url, message, 8, 2.0))
    replicas = holding.replicas()
    names = {each["replica"] for each in replicas}
    assert len(names) == 4
    assert all(each["status"] == "ok" for each in replicas)
    memory = get(f"{holding.url}/vram").json()
    assert memory["resident_mb"] == pytest.approx(sum(each["memory"]["resident_mb"] for each in replicas), rel=0.05)
    assert ask(f"{holding.url}/vram/reset").json()["resident_peak_mb"] >= 0.9 * memory["resident_mb"]
    metrics = get(f"{holding.url}/metrics").text
    assert all(f'replica="{name}"' in metrics for name in names)
    assert metrics.count("# TYPE detserver_requests_total counter") == 1
    answered = counted(metrics, "hold")
    url = f"{holding.url}/infer/hold"
    asked = {ask(url, content=content, headers=JPEG).json()["replica"] for _ in range(40)}
    assert asked <= names
    assert len(asked) > 1
    assert counted(get(f"{holding.url}/metrics").text, "hold") - answered == Counter({200: 40})


def test_a_replica_that_hangs_hides_no_other(holding: Machines):
    hanging, *others = holding.replicas()
    os.kill(hanging["pid"], signal.SIGSTOP)
    try:
        # Asked until one of the others is, which is not up to us.
        metrics = _eventually_answered(f"{holding.url}/metrics")
        health = _eventually_answered(f"{holding.url}/health")
    finally:
        os.kill(hanging["pid"], signal.SIGCONT)
    assert all(f'replica="{each["replica"]}"' in metrics.text for each in others)
    assert hanging["replica"] not in metrics.text
    assert {each["replica"] for each in health.json()["replicas"]} == {each["replica"] for each in others}


def test_a_cluster_serves_one_implementation_and_says_so(holding: Machines, content: bytes):
    listed = {each["name"]: each for each in get(f"{holding.url}/implementations").json()}
    assert listed["hold"]["model_sets"] == ["quick"]
    assert "hold@quick" in listed["baseline"]["unavailable"]
    assert listed["baseline"]["model_sets"] == []
    assert ask(f"{holding.url}/implementations/hold/load").json()["load_s"] == 0
    for refused in (
        ask(f"{holding.url}/implementations/hold/unload"),
        ask(f"{holding.url}/implementations/baseline/load"),
        ask(f"{holding.url}/infer/baseline", content=content, headers=JPEG),
    ):
        assert refused.status_code == 409
        assert "\n" not in refused.json()["detail"]
    assert ask(f"{holding.url}/infer/none", content=content, headers=JPEG).status_code == 404


def test_too_much_is_refused_at_once_by_the_cluster_as_a_whole(holding: Machines, content: bytes):
    load = asyncio.run(open_loop(holding.url, post("hold", content), 80, 10.0, connections=128))
    counts = load.counts()
    assert set(counts) == {200, 429}
    assert 200 < counts[200] < 480
    assert all(each.retry_after for each in load.outcomes if each.status == 429)
    log.info("seconds until a refusal, p50 and p90: %s", [percentile(load.took_s(429), rank) for rank in (50, 90)])
    assert percentile(load.took_s(429), 90) < 0.5  # 21 ms on an idle machine: docs/cluster.md
    assert percentile(load.took_s(200), 99) < 5  # not what waits in a row without end


@pytest.mark.parametrize("killed", ["replica", "node"])
def test_what_dies_takes_its_requests_along_and_nothing_else(machines: Machines, content: bytes, killed: str):
    machines.scale("hold", 3)
    victim = machines.replicas()[0]

    def kill() -> None:
        if killed == "replica":
            os.kill(victim["pid"], signal.SIGKILL)
        else:
            (node,) = (each for each in machines.workers if each.node_id == victim["node"])
            machines.workers.remove(node)
            machines.cluster.remove_node(node, allow_graceful=False)

    outcomes = asyncio.run(_load_with(machines.url, post("hold", content), 6, 12.0, kill))
    until(lambda: len(machines.replicas()) == 3)
    if killed == "node":
        machines.workers.append(machines.add_node())
    statuses = Counter(each.status for each in outcomes)
    assert set(statuses) <= {200, 500, 503}
    # Six users over three replicas: what it had in work, and what the proxy sent it before it knew.
    assert 0 < statuses.total() - statuses[200] <= 8
    last_failure = max(each.sent for each in outcomes if each.status != 200)
    assert last_failure - min(each.sent for each in outcomes) < 8.0
    assert victim["replica"] not in {each["replica"] for each in machines.replicas()}


def test_nothing_is_lost_while_replicas_come_and_go(machines: Machines, content: bytes):
    machines.scale("hold", 1)

    async def scaled() -> list[Outcome]:
        is_over = asyncio.Event()
        load = asyncio.create_task(_users(machines.url, post("hold", content), 4, lambda: not is_over.is_set()))
        for replicas in (4, 1):
            await asyncio.to_thread(machines.scale, "hold", replicas)
            await asyncio.sleep(4)
        is_over.set()
        return await load

    outcomes = asyncio.run(scaled())
    assert Counter(each.status for each in outcomes) == {200: len(outcomes)}
    assert len(outcomes) > 100


def test_a_cluster_of_its_own_on_this_machine(tmp_path: Path, quick: dict[str, str], content: bytes):
    server = start(tmp_path, True, quick | {"DETSERVER_REPLICAS": "2", "DETSERVER_PRELOAD": "invalid"}, PROCESS)
    try:
        names = {each["replica"] for each in get(f"{server.url}/health").json()["replicas"]}
        assert len(names) == 2
        answer = server.infer("invalid", content=content, headers=JPEG)
        assert answer.json()["replica"] in names
        tensors = ask(f"{server.url}/v2/models/invalid/infer", content=b"{}")
        assert tensors.status_code == 400
        assert "error" in tensors.json()
        assert _addresses_of_ray(server.process.pid) <= {"127.0.0.1", "::ffff:127.0.0.1"}
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_a_replica_that_cannot_serve_ends_the_start_with_a_line(tmp_path: Path, quick: dict[str, str]):
    with pytest.raises(AssertionError, match=r"error: no implementation 'nothing'"):
        start(tmp_path, True, quick | {"DETSERVER_REPLICAS": "1", "DETSERVER_PRELOAD": "nothing"}, PROCESS)


def _eventually_answered(url: str) -> httpx.Response:
    for _ in range(8):
        with suppress(httpx.TimeoutException):
            return httpx.get(url, timeout=8).raise_for_status()
    raise AssertionError(f"no answer from {url}")


def _addresses_of_ray(driver: int) -> set[str]:
    """Where all processes listen that belong to the cluster of a driver."""
    tree = [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]
    pids = {process.pid for process in tree}
    listening = (each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN)
    found = {each.laddr.ip for each in listening if each.pid in pids}
    assert found
    return found


def test_a_port_that_is_taken_ends_the_start_with_a_line(tmp_path: Path, quick: dict[str, str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        settings = {"DETSERVER_REPLICAS": "1", "DETSERVER_PRELOAD": "invalid", "DETSERVER_PORT": port}
        environment = os.environ | quick | settings
        ended = subprocess.run([sys.executable, *PROCESS], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert re.search(rf"^error: .*127.0.0.1:{port}", ended.stderr, re.MULTILINE)


def _found(answer: dict[str, Any]) -> list[DetectionOutput]:
    return [
        DetectionOutput(each["model_name"], *(np.array(each[name]) for name in ("boxes", "scores", "labels")))
        for each in answer["detections"]
    ]


def lasting(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds from now are not over."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() < end


async def _one_user(url: str, message: bytes, goes_on: Callable[[], bool]) -> list[Outcome]:
    client = Client(url)
    outcomes = []
    while goes_on():
        sent = time.perf_counter()
        status, head = await client.ask(message)
        outcomes.append(Outcome(status, sent, 0.0, time.perf_counter() - sent, b"retry-after:" in head.lower()))
    client.close()
    return outcomes


async def _users(url: str, message: bytes, users: int, goes_on: Callable[[], bool]) -> list[Outcome]:
    all_of_them = await asyncio.gather(*(_one_user(url, message, goes_on) for _ in range(users)))
    return [outcome for each in all_of_them for outcome in each]


async def _load_with(url: str, message: bytes, users: int, seconds: float, do: Callable[[], None]) -> list[Outcome]:
    """A load in whose first third something happens."""
    load = asyncio.create_task(_users(url, message, users, lasting(seconds)))
    await asyncio.sleep(seconds / 3)
    await asyncio.to_thread(do)
    return await load
