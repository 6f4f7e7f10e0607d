"""Head of the Ray cluster of compose.ray.yaml: starts Ray, deploys SERVE_CONFIG, and at SIGTERM lets replicas drain.

Arguments are those of `ray start`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from typing import Any

import yaml

# On the network of Ray's nodes. The head is on the stack's network, too, where clients find the server.
NAME = "ray-head"
DASHBOARD_PORT = 8265
APPLICATIONS = "/api/serve/applications/"
POLL_S = 0.5


def main() -> int:
    """Run until SIGTERM, or until Ray ends; returns the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = yaml.safe_load(os.environ["SERVE_CONFIG"])
    address = socket.gethostbyname(NAME)
    listening = (f"--node-ip-address={address}", f"--dashboard-host={address}", f"--dashboard-port={DASHBOARD_PORT}")
    ray = subprocess.Popen(["ray", "start", "--head", "--block", *listening, *sys.argv[1:]])
    try:
        # The application asks the cluster which resources it has.
        while not _has_worker(address):
            if ray.poll() is not None:
                return ray.returncode
            time.sleep(POLL_S)
        _ask(address, "PUT", APPLICATIONS, config)
        try:
            return ray.wait()
        finally:
            if ray.poll() is None:
                _drain(address, config)
    finally:
        ray.terminate()
        ray.wait()


def _drain(address: str, config: dict[str, Any]) -> None:
    """Let the replicas answer what they have accepted, and end; the proxy, which hands their answers on, stays."""
    _ask(address, "PUT", APPLICATIONS, {**config, "applications": []})
    while any(actor["class_name"].startswith("ServeReplica:") for actor in _alive(address, "actors")):
        time.sleep(POLL_S)


def _has_worker(address: str) -> bool:
    try:
        return any(not node["is_head_node"] for node in _alive(address, "nodes"))
    except ConnectionError:  # Ray is still starting
        return False


def _alive(address: str, kind: str) -> list[dict[str, Any]]:
    listed = _ask(address, "GET", f"/api/v0/{kind}?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE")
    found: list[dict[str, Any]] = listed["data"]["result"]["result"]
    return found


def _ask(address: str, method: str, path: str, body: object = None) -> Any:
    """Ask the REST API of Ray's dashboard: directly, whatever proxies the environment names.

    Raises:
        SystemExit: it does not do what it was asked for.
    """
    connection = HTTPConnection(address, DASHBOARD_PORT)
    connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode()
    if response.status != 200:
        sys.exit(f"error: {method} {path}: {response.status} {text}")
    return json.loads(text) if text else None


if __name__ == "__main__":
    sys.exit(main())
