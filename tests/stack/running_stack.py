"""The stack as the tests drive it."""

import io
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from PIL import Image

ROOT = Path(__file__).parents[2]
PROJECT = "detbench-test"
# All but the DCGM exporter, which needs a GPU.
SERVICES = ("inference", "locust-master", "locust-worker", "prometheus", "pushgateway", "grafana")
FILES = ("compose.yaml", "compose.cpu.yaml")
PORTS = {"INFERENCE_PORT": 18000, "LOCUST_PORT": 18089, "PROMETHEUS_PORT": 19090, "GRAFANA_PORT": 13000}
RATE_INTERVAL = "8s"  # Grafana's at a scrape interval of 2 s


class Stack:
    """The stack by its command line, and by the HTTP of Locust and Prometheus.

    Args:
        root: the checkout that it is started from.
        environment: on top of this process's, for every command.
        files: of Compose.
    """

    def __init__(
        self,
        root: Path = ROOT,
        environment: Mapping[str, str] = MappingProxyType({}),
        files: tuple[str, ...] = FILES,
    ) -> None:
        self._root = root
        self._environment = environment
        self._files = [option for file in files for option in ("-f", file)]
        self.locust = httpx.Client(base_url=f"http://127.0.0.1:{PORTS['LOCUST_PORT']}", timeout=30)
        self._prometheus = httpx.Client(base_url=f"http://127.0.0.1:{PORTS['PROMETHEUS_PORT']}/api/v1", timeout=30)

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.docker("compose", "-p", PROJECT, *self._files, *arguments, check=check)

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {name: str(port) for name, port in PORTS.items()} | self._environment
        done = subprocess.run(["docker", *arguments], cwd=self._root, env=environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done

    def up(self, *services: str) -> None:
        """Start services with what they depend on, and wait until all are healthy."""
        self.compose("up", "--detach", "--wait", "--wait-timeout", "240", *services)

    def down(self, check: bool = True) -> None:
        """Stop everything and remove it, volumes too."""
        self.compose("--profile", "tools", "down", "--volumes", "--remove-orphans", check=check)

    def address(self, service: str) -> str:
        """Where a service's first container answers on its own network."""
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return self.docker("inspect", "--format", form, self.containers(service)[0]).stdout.strip()

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).stdout.split()

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = self._prometheus.get("/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, expression: str) -> float:
        """The only sample of a query; 0 where there is none."""
        result = self.query(expression)
        assert len(result) <= 1, result
        return float(result[0]["value"][1]) if result else 0.0

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._prometheus.get("/targets").json()["data"]["activeTargets"]
        return found

    def swarm(self, users: int, implementation: str, model_set: str = "mixed") -> None:
        """Start a load by Locust's web API."""
        form = {"user_count": users, "spawn_rate": users, "implementation": implementation, "model_set": model_set}
        form |= {"dataset": "sample", "max_images": 100, "host": "http://inference:8000"}
        answer = self.locust.post("/swarm", data=form).json()
        assert answer["success"], answer

    def statistics(self) -> dict[str, Any]:
        """What Locust's web UI shows."""
        shown: dict[str, Any] = self.locust.get("/stats/requests").json()
        return shown

    def locust_requests(self) -> int:
        rows = self.statistics()["stats"]
        return int(next((row["num_requests"] for row in rows if row["name"] == "Aggregated"), 0))

    def locust_failures(self) -> int:
        rows = self.statistics()["stats"]
        return int(next((row["num_failures"] for row in rows if row["name"] == "Aggregated"), 0))

    def stop(self) -> None:
        self.locust.post("/stop")
        eventually(lambda: self.statistics()["state"] in {"stopped", "ready"})

    @contextmanager
    def loaded(self, implementation: str) -> Iterator[None]:
        """8 users send, from every worker, while the block runs."""
        eventually(lambda: self._all_workers_are("ready"))
        self.swarm(users=8, implementation=implementation)
        try:
            eventually(lambda: self._all_workers_are("running") and self.locust_requests() > 0)
            eventually(lambda: self.value('sum(rate(detbench_requests_total{outcome="success"}[8s]))') > 0)
            yield
        finally:
            self.stop()

    def _all_workers_are(self, state: str) -> bool:
        """By Locust: in Prometheus there is still the load that has just ended, and its workers."""
        states = [worker["state"] for worker in self.statistics()["workers"]]
        return states.count(state) == len(self.containers("locust-worker"))

    def leftovers(self) -> list[str]:
        label = f"label=com.docker.compose.project={PROJECT}"
        return [
            line
            for what in (("ps", "-a"), ("network", "ls"), ("volume", "ls"))
            for line in self.docker(*what, "--filter", label, "--format", "{{json .}}").stdout.splitlines()
            if json.loads(line)
        ]


def eventually(holds: Callable[[], object], within_s: float = 90) -> None:
    """Wait until `holds()` is true; a server that is just coming up may refuse."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if holds():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        time.sleep(0.5)


@contextmanager
def refused_uploads(implementation: str) -> Iterator[None]:
    """Something that is not an image, again and again, so that the panels of errors have something to show."""
    over = threading.Event()
    url = f"http://127.0.0.1:{PORTS['INFERENCE_PORT']}/infer/{implementation}"

    def send() -> None:
        while not over.wait(1):
            assert httpx.post(url, content=b"x", headers={"Content-Type": "image/jpeg"}, timeout=60).is_client_error

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def panels() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Name of each panel, and of its queries that need no GPU PromQL, as Grafana sends it by default, and legend."""
    for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield (
                f"{path.stem}: {panel['title']}",
                [
                    (
                        re.sub(r"\$implementation", ".*", target["expr"].replace("$__rate_interval", RATE_INTERVAL)),
                        legend,
                    )
                    for target in panel.get("targets", [])
                    for legend in [target.get("legendFormat", "")]
                    if "DCGM" not in target["expr"] and "vram" not in target["expr"]
                ],
            )


def listening(stack: Stack, service: str) -> set[int]:
    """TCP ports that a service's first container listens on."""
    table = stack.docker("exec", stack.containers(service)[0], "cat", "/proc/net/tcp", "/proc/net/tcp6").stdout
    return {int(port, 16) for port in re.findall(r"^ *\d+: [0-9A-F]+:([0-9A-F]{4}) \S+ 0A ", table, re.M)}


def addresses_elsewhere() -> list[str]:
    """IPv4 addresses of this machine other than loopback."""
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    return [address for address in addresses if ":" not in address and not address.startswith("127.")]


def assert_without_rights(stack: Stack, service: str) -> None:
    """No root, no capability, none to be gained, and nothing to be written."""
    container = stack.containers(service)[0]
    status = stack.docker("exec", container, "cat", "/proc/1/status").stdout
    assert re.search(r"^Uid:\s+[1-9]", status, re.M)
    assert re.search(r"^CapEff:\s+0+$", status, re.M)
    assert re.search(r"^CapBnd:\s+0+$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    written = stack.docker("exec", container, "python", "-c", "open('/opt/x', 'w')", check=False)
    assert "Read-only file system" in written.stderr


def photo() -> bytes:
    """A JPEG of 640 x 480."""
    out = io.BytesIO()
    Image.effect_mandelbrot((640, 480), (-2, -1.2, 1, 1.2), 60).convert("RGB").save(out, "JPEG")
    return out.getvalue()
