"""What a capture does, in which order and on which device. CUDA is a fake that writes down what it is asked."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from detserver.engine.loaded import LoadedImplementations
from detserver.implementations.base import BaseModelImpl
from detserver.machine.stopwatch import Stopwatch
from detserver.recipes.build import why_not
from detserver.recipes.recipe import Recipe
from detserver.recipes.technique import Network, Plan
from detserver.recipes.techniques.graph import Graph, StaticBatch
from detserver.recipes.techniques.streams import Streams

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


def plan_of(networks: list[Network]) -> Plan:
    specs = [spec for network in networks for spec in network.specs]
    model_set = SimpleNamespace(models=specs, inputs=())
    plan = Plan(Recipe(graph=True), model_set, SimpleNamespace(), SECOND, Stopwatch(SECOND), lambda: None)
    plan.networks = networks
    return plan


class Static(StaticBatch):
    """A batch without buffers."""

    def __init__(self, plan: Plan, done: list[str]) -> None:
        self._plan = plan
        self._done = done
        self._graph = self._captured()

    def _compute(self):
        self._done.append("compute")
        return [], None


def test_a_graph_has_its_own_workspaces_and_leaves_none_to_others(done: list[str]):
    Static(plan_of([]), done)
    captured = ["clear", "capture begins", "compute", "capture ends", "clear"]
    assert done == [*["compute"] * 3, *captured, "empty cache"], "what the warm-up took is given back"


def test_workspaces_are_cleared_where_a_capture_fails(done: list[str], monkeypatch):
    def failing(self):
        done.append("compute")
        if done.count("compute") == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Static, "_compute", failing)
    with pytest.raises(torch.OutOfMemoryError):
        Static(plan_of([]), done)
    assert done[-2:] == ["compute", "clear"]


def test_unloading_drops_the_graphs_first_and_their_memory_last(done: list[str], monkeypatch, tmp_path):
    plan = plan_of([])
    monkeypatch.setattr("detserver.recipes.techniques.graph.PostProcessor", lambda *_: None)
    monkeypatch.setattr("detserver.recipes.techniques.graph.detections", lambda *_: [])
    monkeypatch.setattr("detserver.recipes.techniques.graph.StaticBatch", lambda plan, *_: Static(plan, done))
    monkeypatch.setattr(Static, "run", lambda *_: None)
    Graph().apply(plan)
    for batch in (["image"], ["image"], ["image"] * 2):
        plan.detect(batch)
    assert done.count("capture begins") == 2, "one graph for each batch size"

    class Captured(BaseModelImpl):
        def load(self):
            pass

        def predict(self, image):
            pass

        def unload(self):
            for release in plan.release:
                release()

    loaded = LoadedImplementations(SimpleNamespace(), SECOND, nullcontext)
    loaded._loaded["captured", "none"] = Captured(SimpleNamespace(), SimpleNamespace(), SECOND)
    done.clear()
    assert loaded.unload(("captured", "none"))
    assert done == ["synchronize cuda:1", "graph reset"] * 2 + ["clear", "empty cache"]


def test_each_network_has_a_stream_of_the_device(done: list[str]):
    networks = [
        Network([SimpleNamespace(name=name, input="input")], None, lambda pixels, name=name: [f"{name} of {pixels}"])
        for name in ("first", "second")
    ]
    plan = plan_of(networks)
    Streams().apply(plan)
    assert plan.forward({"input": "pixels"}) == ["first of pixels", "second of pixels"]


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (Recipe(graph=True), "it needs postprocess=batched"),
        (Recipe(graph=True, postprocess="batched", backend="onnxruntime"), "cannot be captured"),
        (Recipe(streams=True, postprocess="batched", backend="onnxruntime"), "streams of its own"),
    ],
    ids=str,
)
def test_what_cannot_be_captured_is_refused(recipe: Recipe, reason: str, monkeypatch):
    monkeypatch.setattr("detserver.recipes.build.of_recipe", lambda _: [Streams() if recipe.streams else Graph()])
    assert reason in str(why_not(recipe, SECOND))
    assert "need an NVIDIA GPU" in str(why_not(recipe, torch.device("cpu")))
