"""The fastest of several variants is chosen by timing, once."""

import json
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from detserver.models.model_sets import BUILT_IN, ModelSet
from detserver.models.weights import WeightsStore
from detserver.recipes import choice, compiling
from detserver.recipes.choice import ChosenImpl, Variant

SET = ModelSet("one", BUILT_IN[1].models[1:2])


def variant(name: str, seconds: float, timed: list[str]) -> Variant:
    """A network that takes `seconds` and finds nothing."""
    levels = [(torch.full((1, 9 * 7, size, size), -9.0), torch.zeros(1, 36, size, size)) for size in (64, 32, 16, 8, 4)]
    raw = tuple(zip(*levels, strict=True))

    def run(pixels: torch.Tensor):
        time.sleep(seconds)
        timed.append(name)
        return raw

    return Variant(name, lambda _, finish: lambda inputs: [run(inputs[SET.models[0].input])])


class Choosing(ChosenImpl):
    name = "choosing"
    description = "for the tests"
    exact = True
    timed: list[str] = []  # noqa: RUF012

    def variants(self) -> list[Variant]:
        return [variant("slow", 0.05, self.timed), variant("fast", 0.0, self.timed)]


@pytest.fixture
def weights(store: WeightsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsStore:
    """The session's weights, with a cache of the test's own for the choice."""
    store.get(SET.models[0])
    monkeypatch.setattr(store, "cache_dir", tmp_path)
    Choosing.timed.clear()
    return store


def loaded(weights: WeightsStore) -> Choosing:
    implementation = Choosing(SET, weights, torch.device("cpu"))
    implementation.load()
    return implementation


def test_the_fastest_runs_and_is_remembered(weights: WeightsStore, tmp_path: Path):
    first = loaded(weights)
    assert first.remark.startswith("fast (")
    assert {"slow", "fast"} == set(Choosing.timed)
    Choosing.timed.clear()
    assert loaded(weights).remark == first.remark
    assert set(Choosing.timed) == {"fast"}
    (file,) = (tmp_path / "choices").iterdir()
    assert json.loads(file.read_text()).keys() == {"slow", "fast"}


class Clock:
    """In place of the module `time`: goes on only where it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


class Doubling(torch.nn.Module):
    """What a compiler can be tried on quickly."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels * 2


class Compiling(Choosing):
    @classmethod
    def compiles(cls, device: torch.device) -> bool:
        return True

    def variants(self) -> list[Variant]:
        found_nothing = variant("eager", 0.0, self.timed).build

        def build(models, finish):
            network, forward = finish(Doubling()), found_nothing(models, finish)
            return lambda inputs: (network(inputs[SET.models[0].input]), forward(inputs))[1]

        return [Variant("eager", build)]


def test_a_load_compiles_for_a_bounded_time_and_the_next_one_goes_on(
    weights: WeightsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiled = []
    own = partial(torch.compile, backend=lambda graph, _: (compiled.append(graph), graph.forward)[1])
    monkeypatch.setattr(torch, "compile", own)
    monkeypatch.setattr(choice, "_COMPILE_FOR_S", 0.0)
    implementation = Compiling(SET, weights, torch.device("cpu"))
    implementation.load()
    assert implementation.remark.startswith("eager (")
    assert "not compiled: 0 s of torch.compile were not enough for a network" in implementation.remark
    assert not compiled
    assert not (tmp_path / "choices").exists()

    monkeypatch.setattr(choice, "_COMPILE_FOR_S", 300.0)
    implementation = Compiling(SET, weights, torch.device("cpu"))
    implementation.load()
    assert compiled
    assert implementation.compile_s is not None
    assert "eager, compiled" in implementation.remark
    assert "not compiled" not in implementation.remark
    assert (tmp_path / "choices").exists()


def test_what_of_a_compiled_variant_runs_eager_is_named_by_its_shape(
    weights: WeightsStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    clock = Clock()
    monkeypatch.setattr(compiling, "time", clock)
    monkeypatch.setattr(choice, "time", clock)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))

    class Batches(Compiling):
        def batch_sizes(self) -> tuple[int, ...]:
            return (1, 4, 16)

        def predict_batch(self, images):
            found = super().predict_batch(images)
            clock.now += 400 if len(images) == 4 else 0  # so that batches of 16 come after the five minutes
            return found

    def build(models, finish):
        network = finish(Doubling())
        levels = [(9 * 7, 36, size) for size in (64, 32, 16, 8, 4)]

        def forward(inputs):
            batch = network(inputs[SET.models[0].input]).shape[0]
            classes = [torch.full((batch, c, size, size), -9.0) for c, _, size in levels]
            return [(classes, [torch.zeros(batch, b, size, size) for _, b, size in levels])]

        return forward

    monkeypatch.setattr(Batches, "variants", lambda _: [Variant("plain", build)])
    monkeypatch.setattr(choice, "_read", lambda *_: {"plain": 2.0, "plain, compiled": 1.0})
    implementation = Batches(SET, weights, torch.device("cpu"))
    implementation.load()
    eager = "plain, compiled, but eager, because 300 s of torch.compile were over: 512 x 512 px in batches of 16"
    assert implementation.remark.startswith(eager)
    assert implementation.remark.endswith("batches of 1, 4, 16")
    assert eager in caplog.text


def test_a_variant_that_does_not_compile_is_left_out(
    weights: WeightsStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def backend(*_):
        raise ValueError("no such instruction")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    implementation = Compiling(SET, weights, torch.device("cpu"))
    implementation.load()
    assert implementation.remark.startswith("eager (")
    assert "eager, compiled is left out" in caplog.text
    assert "no such instruction" in caplog.text


@pytest.mark.parametrize("damage", ["[1", '{"unheard of": 1}'])
def test_a_damaged_memory_is_measured_anew(weights: WeightsStore, tmp_path: Path, damage: str):
    loaded(weights)
    (file,) = (tmp_path / "choices").iterdir()
    file.write_text(damage)
    Choosing.timed.clear()
    assert loaded(weights).remark.startswith("fast")
    assert "slow" in Choosing.timed


def test_in_bfloat16_the_networks_get_bfloat16(weights: WeightsStore, photos: list[Path]):
    seen = []

    class Low(Choosing):
        dtype = torch.bfloat16

        def variants(self) -> list[Variant]:
            made = variant("only", 0.0, self.timed)

            def build(models, finish):
                assert {p.dtype for p in finish(models[0]).parameters()} == {torch.bfloat16}
                forward = made.build(models, finish)
                return lambda inputs: (seen.append(inputs[SET.models[0].input].dtype), forward(inputs))[1]

            return [Variant("only", build)]

    implementation = Low(SET, weights, torch.device("cpu"))
    implementation.load()
    assert set(seen) == {torch.bfloat16}
    assert len(implementation.predict(implementation.example())) == 1
