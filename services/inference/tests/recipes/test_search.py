"""The search for the fastest recipe: by timing, for each batch size, once."""

import json
from pathlib import Path

import pytest
import torch
from same_answers import assert_equal

from detserver.implementations import Registry
from detserver.models.model_sets import ModelSet
from detserver.recipes import search as search_module
from detserver.recipes.recipe import BATCH_SIZES, Recipe, Search
from detserver.recipes.search import Found, Memory, candidates, search

CPU, GPU = torch.device("cpu"), torch.device("cuda")
A, B, C = (
    Recipe(postprocess="batched", layout="channels_last", fold=fold, graph=graph)
    for fold, graph in ((False, False), (True, False), (True, True))
)


class Clock:
    """In place of the module `time`: goes on only where a run takes time."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class FakeBuilt:
    """Runs of a recipe that take as long as a table says, by the clock."""

    def __init__(self, world: "World", recipe: Recipe) -> None:
        self.world, self.recipe = world, recipe
        self.batch_sizes = world.sizes.get(recipe, BATCH_SIZES)
        self.released = False
        world.built.append(self)

    def warm_up(self, example, sizes) -> None:
        self.world.clock.now += self.world.compile_s if self.recipe.compile != "none" else 0.0

    def detect(self, images) -> None:
        assert not self.released
        self.world.tried.add((self.recipe, len(images)))
        found = self.world.seconds[self.recipe]
        if isinstance(found, Exception):
            raise found
        self.world.clock.now += found(len(images))

    def release(self) -> None:
        self.released = True


class World:
    def __init__(self, seconds, sizes=None, compile_s: float = 100.0) -> None:
        self.seconds, self.sizes, self.compile_s = seconds, sizes or {}, compile_s
        self.clock = Clock()
        self.built: list[FakeBuilt] = []
        self.tried: set[tuple[Recipe, int]] = set()

    def search(self, monkeypatch, device=CPU) -> Found:
        def seconds_of(call, repeats, limit_s):
            start = self.clock.now
            call()
            return [self.clock.now - start]

        monkeypatch.setattr(search_module, "seconds_of", seconds_of)
        monkeypatch.setattr(search_module, "time", self.clock)
        found = search(self.seconds, device, lambda recipe: FakeBuilt(self, recipe), None)
        assert all(built.released for built in self.built)
        return found


def test_each_batch_size_has_the_recipe_that_is_fastest_there(monkeypatch):
    world = World({A: lambda n: 1 + 0.9 * n, B: lambda n: 2 + 0.2 * n})
    fastest = world.search(monkeypatch).fastest
    assert fastest == {1: A, 2: B, 4: B, 8: B, 16: B}


def test_sizes_that_gain_nothing_over_their_halves_are_not_built(monkeypatch):
    world = World({A: lambda n: 1.0 * n})
    assert world.search(monkeypatch).fastest == {1: A}
    assert (A, 4) not in world.tried
    world = World({A: lambda n: 1.0 * n, B: lambda n: 1.2 + 0.1 * n}, sizes={B: (1, 2)})
    assert world.search(monkeypatch).fastest == {1: A, 2: B}


def test_what_is_hopeless_is_not_tried_with_larger_batches(monkeypatch):
    world = World({A: lambda n: 5 + 0.1 * n, B: lambda n: 1 + 0.5 * n})
    world.search(monkeypatch)
    assert (A, 1) in world.tried
    assert (A, 2) not in world.tried


def test_what_fails_is_left_out_and_said(monkeypatch, caplog):
    world = World({A: ValueError("no such instruction"), B: lambda n: 1.0})
    assert set(world.search(monkeypatch).fastest.values()) == {B}
    assert "no such instruction" in caplog.text
    with pytest.raises(ValueError, match="no such instruction"):
        World({A: ValueError("no such instruction")}).search(monkeypatch)


def compiled_world(monkeypatch, **options) -> World:
    monkeypatch.setattr(search_module, "compiled", lambda recipe, _: Recipe(**{**vars(recipe), "compile": "default"}))
    compiled = Recipe(**{**vars(A), "compile": "default"})
    seconds = {A: lambda n: 1 + 0.5 * n, compiled: lambda n: 0.5 + 0.5 * n}

    class OnlyOffered(dict):
        def __iter__(self):
            return iter([A])

    return World(OnlyOffered(seconds), **options)


def test_the_fastest_of_each_size_is_compiled_too(monkeypatch):
    found = compiled_world(monkeypatch, compile_s=1.0).search(monkeypatch, GPU)
    assert {recipe.compile for recipe in found.fastest.values()} == {"default"}
    assert not found.skipped


def test_compiling_ends_after_five_minutes_and_the_choice_is_not_kept(monkeypatch, tmp_path, small):
    found = compiled_world(monkeypatch, compile_s=200.0).search(monkeypatch, GPU)
    assert [recipe.compile for recipe in found.fastest.values()] == ["default", "default", "none", "none", "none"]
    assert found.skipped == "batches of 4 and more not compiled: 300 s were over"
    Memory(tmp_path, small, CPU, [A]).write(found)
    assert not list(tmp_path.rglob("*"))


def test_on_a_cpu_there_is_what_the_machine_has_and_for_each_precision_its_own():
    offered = candidates(Search(), CPU)
    assert {recipe.precision for recipe in offered} == {"fp32"}
    assert {recipe.stack for recipe in offered} == {"none", "grouped", "grouped-products"}
    assert not any(recipe.graph or recipe.streams or recipe.compile != "none" for recipe in offered)
    assert {recipe.precision for recipe in candidates(Search("bf16"), CPU)} == {"bf16"}
    assert candidates(Search("fp16"), CPU) == []


def test_on_a_gpu_everything_is_in_a_graph_and_separate_networks_on_streams(small):
    offered = candidates(Search(), GPU)
    in_torch = [recipe for recipe in offered if recipe.backend == "torch"]
    assert {(recipe.stack, recipe.layout) for recipe in in_torch} == {
        (stack, "contiguous") for stack in ("none", "grouped", "grouped-products")
    }
    assert len(candidates(Search("fp16"), GPU)) == 6, "tensor cores may like channels_last"
    assert all(recipe.graph and recipe.streams == (recipe.stack == "none") for recipe in in_torch)
    one = type(small)("one", small.models[:1])
    assert {recipe.stack for recipe in candidates(Search(), GPU, one)} == {"none"}


@pytest.fixture
def memory(tmp_path: Path, small) -> Memory:
    return Memory(tmp_path, small, CPU, [A, B, C])


def test_what_was_found_is_remembered(memory: Memory):
    found = Found({1: {A: 2.0, B: 1.0}, 2: {A: 3.0}})
    assert memory.read() is None
    memory.write(found)
    assert memory.read() == found


@pytest.mark.parametrize(
    "damage", ["[1", "[]", "{}", '{"2": {"fold": 1}}', '{"1": {"unheard of": 1}}', '{"1": {}}', '{"3": {}}']
)
def test_a_damaged_memory_is_no_memory(memory: Memory, tmp_path: Path, damage: str):
    memory.write(Found({1: {A: 2.0}}))
    (file,) = (tmp_path / "choices").iterdir()
    assert json.loads(file.read_text())
    file.write_text(damage)
    assert memory.read() is None


@pytest.fixture
def weights(store, small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The session's weights, with a cache of the test's own for the choice."""
    for spec in small.models:
        store.get(spec)
    monkeypatch.setattr(store, "cache_dir", tmp_path)
    torch_alone = [recipe for recipe in candidates(Search(), CPU, small) if recipe.backend == "torch"][1:3]
    monkeypatch.setattr("detserver.implementations.from_recipe.candidates", lambda *_: torch_alone)
    return store


@pytest.mark.slow
def test_fastest_says_what_it_runs_and_searches_once(weights, small, monkeypatch, tmp_path: Path):
    fastest = Registry().get("fastest")
    first = fastest(small, weights, CPU)
    first.load()
    assert "(one image on this machine: " in first.remark
    assert list((tmp_path / "choices").iterdir())
    monkeypatch.setattr("detserver.implementations.from_recipe.search", lambda *_: pytest.fail("searched again"))
    second = fastest(small, weights, CPU)
    second.load()
    assert second.remark == first.remark


@pytest.mark.slow
def test_what_cannot_be_converted_is_left_out(weights, small, monkeypatch, caplog):
    onnxruntime = Recipe(fold=True, postprocess="batched", backend="onnxruntime")
    torch_alone = [recipe for recipe in candidates(Search(), CPU, small) if recipe.backend == "torch"][1:2]
    monkeypatch.setattr("detserver.implementations.from_recipe.candidates", lambda *_: [onnxruntime, *torch_alone])

    def fails(*_: object) -> None:
        raise RuntimeError("an operator that ONNX does not have")

    monkeypatch.setattr("detserver.recipes.backends.onnxruntime_network.prepare", fails)
    monkeypatch.setattr("detserver.recipes.backends.onnxruntime_network.network", fails)
    implementation = Registry().get("fastest")(ModelSet("one", small.models[:1]), weights, CPU)
    implementation.prepare()
    implementation.load()
    assert str(torch_alone[0]) in implementation.remark
    assert "onnxruntime" not in implementation.remark
    assert "not prepared: an operator that ONNX does not have" in caplog.text
    assert "left out, because it failed: an operator" in caplog.text


def test_what_is_converted_by_a_process_that_is_killed_is_left_out(weights, small, monkeypatch, caplog):
    onnxruntime = Recipe(fold=True, postprocess="batched", backend="onnxruntime")
    torch_alone = [recipe for recipe in candidates(Search(), CPU, small) if recipe.backend == "torch"][1:2]
    monkeypatch.setattr("detserver.implementations.from_recipe.candidates", lambda *_: [onnxruntime, *torch_alone])
    monkeypatch.setattr("detserver.recipes.techniques.onnxruntime.OnnxRuntime.is_converted", lambda *_: False)
    monkeypatch.setattr("detserver.recipes.aside.sys.executable", "/bin/false")
    Registry().get("fastest")(small, weights, CPU).prepare()
    assert f"{onnxruntime}: left out: the process that converts and compiles networks ended, with 1" in caplog.text


@pytest.mark.slow
def test_fastest_gives_baselines_answers(weights, small, images, expected):
    implementation = Registry().get("fastest")(small, weights, CPU)
    implementation.load()
    assert_equal(implementation.predict_batch(images[:5]), expected[:5])
