"""What a capture does, in which order and on which device. CUDA is a fake that writes down what it is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from detserver.engine.engine import Engine
from detserver.recipes.cuda_graph import CapturedImpl, StaticBatch, on_streams

SECOND = torch.device("cuda:1")


class FakeStream:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, _: "FakeStream") -> None:
        pass


class FakeGraph:
    def __init__(self, done: list[str]) -> None:
        self.done = done

    def reset(self) -> None:
        self.done.append("graph reset")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What CUDA was asked."""
    found: list[str] = []

    @contextmanager
    def on(stream: FakeStream) -> Iterator[None]:
        assert stream.device == SECOND
        yield

    @contextmanager
    def capture(graph: FakeGraph, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        assert stream.device == SECOND
        assert capture_error_mode == "thread_local"
        found.append("capture begins")
        yield
        found.append("capture ends")

    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(found))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: found.append(f"synchronize {device}"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append("empty cache"))
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: found.append("clear"), raising=False)
    return found


class Static(StaticBatch):
    """A batch without buffers."""

    def __init__(self, implementation: CapturedImpl, done: list[str]) -> None:
        self._implementation = implementation
        self._done = done
        self._graph = self._captured()

    def _compute(self):
        self._done.append("compute")
        return [], None


class Captured(CapturedImpl):
    name = "captured"
    description = "for the tests"
    exact = True

    def build(self, models):
        raise NotImplementedError


@pytest.fixture
def implementation(done: list[str]) -> Captured:
    made = Captured(SimpleNamespace(models=(), name="none"), SimpleNamespace(), SECOND)
    made._graphs = {1: Static(made, done)}
    return made


def test_a_graph_has_its_own_workspaces_and_leaves_none_to_others(implementation: Captured, done: list[str]):
    assert done == ["compute"] * 3 + ["clear", "capture begins", "compute", "capture ends", "clear"]


def test_workspaces_are_cleared_where_a_capture_fails(implementation: Captured, done: list[str], monkeypatch):
    def failing(self):
        done.append("compute")
        if done.count("compute") == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Static, "_compute", failing)
    done.clear()
    with pytest.raises(torch.OutOfMemoryError):
        Static(implementation, done)
    assert done[-2:] == ["compute", "clear"]


def test_unloading_drops_the_graphs_first_and_their_memory_last(implementation: Captured, done: list[str], tmp_path):
    engine = Engine(SimpleNamespace(), SimpleNamespace(), SECOND, queue_size=1)
    engine._loaded["captured", "none"] = implementation
    done.clear()
    assert engine._unload(("captured", "none"))
    assert done == ["synchronize cuda:1", "graph reset", "clear", "empty cache"]
    assert implementation._graphs == {}


def test_each_network_has_a_stream_of_the_device(done: list[str]):
    forward = on_streams([(8, lambda pixels: done.append("ran") or pixels)] * 2, SECOND)
    assert forward({8: "pixels"}) == ["pixels"] * 2
    assert done == ["ran", "ran"]
