"""The stack as the tests drive it."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
PROJECT = "detbench-test"
# All but the DCGM exporter, which needs a GPU.
SERVICES = ("inference", "locust-master", "locust-worker", "prometheus", "pushgateway", "grafana")
PORTS = {"INFERENCE_PORT": 18000, "LOCUST_PORT": 18089, "PROMETHEUS_PORT": 19090, "GRAFANA_PORT": 13000}


class Stack:
    """The stack by its command line, and by the HTTP of Locust and Prometheus.

    Args:
        root: the checkout that it is started from.
        environment: on top of this process's, for every command.
    """

    def __init__(self, root: Path = ROOT, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self._root = root
        self._environment = environment
        self.locust = httpx.Client(base_url=f"http://127.0.0.1:{PORTS['LOCUST_PORT']}", timeout=30)
        self._prometheus = httpx.Client(base_url=f"http://127.0.0.1:{PORTS['PROMETHEUS_PORT']}/api/v1", timeout=30)

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        files = ("-f", "compose.yaml", "-f", "compose.cpu.yaml")
        return self.docker("compose", "-p", PROJECT, *files, *arguments, check=check)

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

    def stop(self) -> None:
        self.locust.post("/stop")
        eventually(lambda: self.statistics()["state"] in {"stopped", "ready"})

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
