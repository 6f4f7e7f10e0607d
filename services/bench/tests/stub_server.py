"""A thin detserver for what needs many implementations, or failures at will: every endpoint, and no model."""

import contextlib
import http.server
import itertools
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

MODEL = "tf_efficientdet_d0"
BOX = [10.0, 20.0, 110.0, 220.0]
EMPTY_MB, LOADED_MB, PEAK_MB = 300.0, 500.0, 12.0


def entry(name: str, **changes: object) -> dict[str, Any]:
    """One entry of `GET /implementations`."""
    plain = {
        "name": name,
        "description": f"what {name} does",
        "exact": True,
        "precision": "fp32",
        "model_sets": ["single"],
        "loaded": [],
        "unavailable": None,
        "recipe": None,
        "technique": "",
        "adds_to": None,
        "compiles": False,
        "unsupported": {},
    }
    return {**plain, **changes}


class StubServer:
    """Serves `entries`; a context manager.

    `latencies_ms` are what `POST /time` answers by implementation, per image of a batch. `boxes` are the answer of
    `POST /infer` by implementation, else BOX. `infer_s` is what that call takes, `infer_times_s` when each came
    (CLOCK_MONOTONIC), `load_s` what the first load of an implementation takes. `first_loads` are the implementations
    whose next load is the first on this machine. `refusals` are (status, detail) by the end of a path, `device` torch's
    name of it, `device_states` the answers of `GET /device`. `calls` are the paths of every POST, with the query of
    those to /time. `port` is 0 for any that is free. Memory is EMPTY_MB and LOADED_MB for each implementation that is
    loaded, its peak PEAK_MB more.
    """

    def __init__(self, *entries: dict[str, Any], port: int = 0) -> None:
        self._port = port
        self.entries = {each["name"]: each for each in entries}
        self.latencies_ms: dict[str, float] = {}
        self.boxes: dict[str, list[float]] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.calls: list[str] = []
        self.first_loads: set[str] = set()
        self.infer_s = self.load_s = 0.0
        self.device = "cuda:0"
        self.in_flight = self.most_in_flight = 0
        self.infer_times_s: list[float] = []
        self.device_states: Iterator[dict[str, Any]] = itertools.repeat({})
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, stub.get(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                for end, (status, detail) in stub.refusals.items():
                    if parts.path.endswith(end):
                        return self.answer(status, {"detail": detail})
                return self.answer(200, stub.answer_to(parts.path, query, body))

            def answer(self, status: int, body: object) -> None:
                data = json.dumps(body).encode()
                with contextlib.suppress(ConnectionError):  # a load that has ended
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def get(self, path: str) -> object:
        if path == "/implementations":
            return list(self.entries.values())
        if path == "/device":
            return next(self.device_states)
        if path == "/vram":
            return {"device": self.device} | self._memory()
        if path.startswith("/model-sets/"):
            weights = {"source": "random", "fingerprint": "f" * 64, "num_classes": 90, "configuration": {}}
            taken = {"image_size": (512, 512), "mean": (0.5,) * 3, "std": (0.5,) * 3, "fill_color": (128,) * 3}
            model = {"model_name": MODEL, "architecture": MODEL, "interpolation": "bicubic", **weights, **taken}
            return {"name": "single", "models": [model]}
        assert path in ("/health", "/ready")
        return {
            **{"status": "ok", "device": self.device, "device_name": "Some GPU", "driver": "1", "versions": {}},
            **{"cpu_count": 2, "torch_threads": 1, "platform": "Linux", "revision": "abc", "clocks_mhz": None},
            "settings": {},
        }

    def answer_to(self, path: str, query: dict[str, str], body: bytes) -> object:
        """What a POST answers; here whatever its body is."""
        return self.post(path, query)

    def post(self, path: str, query: dict[str, str]) -> object:
        self.calls.append(path + (f" {query['batch_size']} x {query['repeats']}" if path.startswith("/time/") else ""))
        match path.strip("/").split("/"):
            case ["implementations", name, "load"]:
                with self._lock:  # a second load of the same waits for the first
                    if not self.entries[name]["loaded"]:
                        time.sleep(self.load_s)
                    self.entries[name]["loaded"] = [query["model_set"]]
                    first = name in self.first_loads
                    self.first_loads.discard(name)
                return {
                    "first": first,
                    "implementation": name,
                    "model_set": query["model_set"],
                    "load_s": 90.5 if first else 1.5,
                    "compile_s": 60.25 if self.entries[name]["compiles"] else None,
                }
            case ["implementations", name, "kernels"]:
                return {"implementation": name, "model_set": query["model_set"], "kernels_per_request": 1234}
            case ["implementations", name, "unload"]:
                self.entries[name]["loaded"] = []
            case ["infer", name]:
                return self._infer(name)
            case ["time", name]:
                latency_ms = self.latencies_ms[name] * int(query["batch_size"])
                spread = [0.9, 1.0, 1.1, 1.0]
                return {"latencies_ms": [latency_ms * spread[i % 4] for i in range(int(query["repeats"]))]}
        return {}

    def _memory(self) -> dict[str, float | None]:
        now = EMPTY_MB + LOADED_MB * sum(bool(each["loaded"]) for each in self.entries.values())
        kinds = dict.fromkeys(("resident", "process", "allocated", "reserved", "device_used"), now)
        found: dict[str, float | None] = {f"{kind}_mb": value for kind, value in kinds.items()}
        found |= {f"{kind}_peak_mb": now + PEAK_MB for kind in ("resident", "process", "allocated", "reserved")}
        found["device_total_mb"] = 80_000.0
        on_cpu = self.device == "cpu"
        return {name: None if on_cpu and not name.startswith("resident") else value for name, value in found.items()}

    def _infer(self, name: str) -> dict[str, Any]:
        with self._lock:
            self.infer_times_s.append(time.monotonic())
            self.in_flight += 1
            batch_size = self.in_flight
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        time.sleep(self.infer_s)
        with self._lock:
            self.in_flight -= 1
        found = {"model_name": MODEL, "boxes": [self.boxes.get(name, BOX)], "scores": [0.9], "labels": [1]}
        return {
            **{"implementation": name, "model_set": "single", "total_inference_time_ms": 1.0, "timings_ms": {}},
            **{"batch_size": batch_size, "detections": [found]},
        }
