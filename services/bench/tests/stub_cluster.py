"""A thin cluster: a detserver of several replicas, which serve one request at a time each, and may differ at will."""

import os
import queue
from collections.abc import Callable, Sequence
from typing import Any

from stub_server import MODEL, StubServer, entry

Box = list[float]


class StubCluster(StubServer):
    """Serves `entries`, of which one is loaded, by `replicas`; a `StubServer` where there is none. A context manager.

    `faults` make, by replica, another box of the one that is right. `other_weights` are the replicas whose fingerprint
    is another, `silent` those that do not answer when all are asked. The first replica tells the model set's weights.
    """

    def __init__(self, *entries: dict[str, Any], replicas: Sequence[str] = (), port: int = 0) -> None:
        super().__init__(*entries, port=port)
        self.replicas = replicas
        self.faults: dict[str, Callable[[Box], Box]] = {}
        self.other_weights: set[str] = set()
        self.silent: set[str] = set()
        self._idle: queue.SimpleQueue[str] = queue.SimpleQueue()
        for each in replicas:
            self._idle.put(each)
        if replicas:
            self.refusals["/unload"] = 409, "what this server has preloaded stays loaded"

    def get(self, path: str) -> object:
        found = super().get(path)
        if path == "/health" and self.replicas:
            assert isinstance(found, dict)
            return found | {"replicas": [self._info(each) for each in self.replicas]}
        if path.startswith("/model-sets/") and self.other_weights.intersection(self.replicas[:1]):
            assert isinstance(found, dict)
            return found | {"models": [each | {"fingerprint": "e" * 64} for each in found["models"]]}
        return found

    def answer_to(self, path: str, query: dict[str, str], body: bytes) -> object:
        kind, _, name = path.strip("/").rpartition("/")
        if kind == "replicas/infer":
            asked = [each for each in self.replicas if each not in self.silent]
            return [{"replica": each, "status": 200, "answer": self._infer_by(each, name)} for each in asked]
        if kind != "infer" or not self.replicas:
            return super().answer_to(path, query, body)
        replica = self._idle.get()
        try:
            return self._infer_by(replica, name)
        finally:
            self._idle.put(replica)

    def _infer_by(self, replica: str, name: str) -> object:
        answer = self._infer(name)
        (found,) = answer["detections"]
        boxes = [self.faults[replica](box) if replica in self.faults else box for box in found["boxes"]]
        return answer | {"replica": replica, "detections": [found | {"boxes": boxes}]}

    def _info(self, replica: str) -> dict[str, Any]:
        fingerprint = ("e" if replica in self.other_weights else "f") * 64
        return {
            **{"replica": replica, "node": "n", "address": "127.0.0.1", "pid": os.getpid(), "status": "ok"},
            **{"detail": None, "weights": {MODEL: fingerprint}, "memory": {"device": self.device}},
        }


def serving(name: str, load_s: float = 4.5, **changes: object) -> dict[str, Any]:
    """The entry of what a cluster has loaded before it was ready."""
    loads = [{"implementation": name, "model_set": "single", "load_s": load_s, "compile_s": None}]
    return entry(name, loaded=["single"], loads=loads, **changes)
