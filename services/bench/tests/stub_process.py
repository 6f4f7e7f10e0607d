"""The thin detserver as a process: what `detbench run` starts in a folder where this was installed."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from stub_cluster import StubCluster, serving

MODULE = """
import sys
sys.path.insert(0, {tests!r})
from stub_process import serve
serve({folder!r})
"""


class StubProcesses:
    """Puts a module `detserver` into `folder`, which serves `entries`, and reads what its processes were asked.

    `latencies_ms`, `first_loads` and `device` are as those of a `StubServer`; a first load is one of the first process
    only. `dies_at` are the ends of paths at whose POST a process ends with exit status 3. With DETSERVER_REPLICAS a
    process is a `StubCluster`; `wrong` are the numbers of replicas, from 0, whose boxes are a pixel off, and
    `other_weights` those with other weights.
    """

    def __init__(
        self,
        folder: Path,
        *entries: dict[str, Any],
        latencies_ms: dict[str, float] | None = None,
        first_loads: tuple[str, ...] = (),
        dies_at: tuple[str, ...] = (),
        device: str = "cpu",
        infer_s: float = 0.0,
        wrong: tuple[int, ...] = (),
        other_weights: tuple[int, ...] = (),
    ) -> None:
        self._calls = folder / "calls.jsonl"
        (folder / "detserver.py").write_text(MODULE.format(tests=str(Path(__file__).parent), folder=str(folder)))
        stub = {"entries": entries, "latencies_ms": latencies_ms or {}, "first_loads": first_loads}
        stub |= {"dies_at": dies_at, "device": device, "infer_s": infer_s}
        (folder / "stub.json").write_text(json.dumps({**stub, "wrong": wrong, "other_weights": other_weights}))

    def calls(self) -> list[list[str]]:
        """The paths of the POSTs of each process, in the order in which the processes were started."""
        found: dict[int, list[str]] = {}
        for line in self._calls.read_text().splitlines():
            pid, call = json.loads(line)
            found.setdefault(pid, []).extend([call] if call else [])
        return list(found.values())


class _Recorded(StubCluster):
    def __init__(self, folder: Path, stub: dict[str, Any]) -> None:
        count = int(os.environ["DETSERVER_REPLICAS"])
        names = [f"{number}-{os.getpid()}" for number in range(count)]
        super().__init__(*stub["entries"], replicas=names, port=int(os.environ["DETSERVER_PORT"]))
        if count:
            served, _, model_set = os.environ["DETSERVER_PRELOAD"].partition("@")
            assert model_set == "single"
            exact = self.entries[served]["exact"]
            self.entries = {served: serving(served, exact=exact)}
        self.faults = {names[number]: _moved for number in stub["wrong"] if number < count}
        self.other_weights = {names[number] for number in stub["other_weights"] if number < count}
        self.infer_s = stub["infer_s"]
        self._calls, self._dies_at, self._markers = folder / "calls.jsonl", stub["dies_at"], folder
        self.latencies_ms, self.device = stub["latencies_ms"], stub["device"]
        self.first_loads = {name for name in stub["first_loads"] if not (folder / f"{name}.cached").exists()}
        self._record("")

    def post(self, path: str, query: dict[str, str]) -> object:
        self._record(path)
        if any(path.endswith(end) for end in self._dies_at):
            print("the stub ends itself", flush=True)  # noqa: T201 (its log)
            os._exit(3)
        before = set(self.first_loads)
        answer = super().post(path, query)
        for name in before - self.first_loads:
            (self._markers / f"{name}.cached").touch()
        return answer

    def _record(self, call: str) -> None:
        with self._calls.open("a") as file:
            file.write(json.dumps([os.getpid(), call]) + "\n")


def _moved(box: list[float]) -> list[float]:
    return [each + 1.0 for each in box]


def serve(folder: str) -> None:
    """Serve until SIGTERM; the main program of the process."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with _Recorded(Path(folder), json.loads((Path(folder) / "stub.json").read_text())):
        ended.wait()
