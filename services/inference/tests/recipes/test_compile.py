"""torch.compile."""

import gc
import weakref

import pytest
import torch
from same_answers import assert_equal

from detserver.implementations import Registry
from detserver.models.model_sets import ModelSet
from detserver.models.scenes import photograph
from detserver.preprocess import prepare
from detserver.recipes.aside import prepare_aside
from detserver.recipes.build import is_prepared, why_not
from detserver.recipes.recipe import Recipe
from detserver.recipes.techniques import compile as compilation

CPU, GPU = torch.device("cpu"), torch.device("cuda")
COMPILED = Recipe(postprocess="batched", fold=True, layout="channels_last", compile="default")

needs_a_compiler = pytest.mark.skipif(compilation.unavailable_reason(CPU) is not None, reason="no C++ compiler")


def test_without_a_compiler_it_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compilation.shutil, "which", lambda _: None)
    assert "neither g++ nor clang++ is installed" in str(why_not(COMPILED, CPU))


def test_switched_off_no_implementation_compiles(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(compilation, "_switched_off", False)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: name)
    monkeypatch.setattr(compilation, "find_spec", lambda name: name)
    registry = Registry()
    assert registry.get("fastest").compiles(GPU)
    compilation.configure(tmp_path, 1, allowed=False)
    for name in ("compiled", "reduce-overhead"):
        assert "DETSERVER_COMPILE=false" in str(registry.get(name).unavailable_reason(GPU))
    assert not registry.get("fastest").compiles(GPU)
    assert registry.get("fastest").unavailable_reason(GPU) is None


def test_graphs_of_its_own_need_a_gpu_and_no_other_graph(monkeypatch: pytest.MonkeyPatch):
    own = Recipe(postprocess="batched", compile="reduce-overhead")
    assert "need an NVIDIA GPU" in str(why_not(own, CPU))
    captured = Recipe(postprocess="batched", compile="reduce-overhead", graph=True)
    assert "cannot be captured again" in str(why_not(captured, GPU))


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_another_process_has_compiled_gives_baselines_answers_and_nothing_of_it_is_kept_after_unloading(
    build, small, images, store, monkeypatch: pytest.MonkeyPatch
):
    one = ModelSet("one", small.models[:1])  # tests/test_parity.py compiles three
    assert not is_prepared(COMPILED, one, store, CPU)
    assert prepare_aside([COMPILED], one, store, CPU) == {}
    assert is_prepared(COMPILED, one, store, CPU)
    monkeypatch.setattr(compilation, "compiled", None)  # nothing is compiled in this process
    before = {id(each) for each in _parameters()}
    built = build(COMPILED, one)
    with torch.inference_mode():  # which the other process was not in, nor `detect` is
        example = _example(built)
    built.warm_up(lambda: example, [1])
    assert built.compile_s is not None
    parameters = [weakref.ref(each) for each in _parameters() if id(each) not in before]
    assert parameters
    del built
    gc.collect()
    assert not any(parameter() is not None for parameter in parameters)
    ours, expected = build(COMPILED, one), build(Recipe(), one)
    for image in images[::5]:
        assert_equal(ours.detect([image]), expected.detect([image]))


def _example(built):
    return prepare(photograph(), built._plan.model_set.inputs)


def _parameters() -> list[torch.nn.Parameter]:
    return [each for each in gc.get_objects() if type(each) is torch.nn.Parameter]
