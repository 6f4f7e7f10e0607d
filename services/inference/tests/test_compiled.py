"""torch.compile."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image

from detserver.implementations.compiled import Compiled
from detserver.models.model_sets import BUILT_IN, ModelSet
from detserver.models.weights import WeightsStore
from detserver.preprocess import prepare
from detserver.recipes import compiling

CPU = torch.device("cpu")
# Two input sizes: with symbols for height and width torch compiles for more than a quarter of an hour.
SET = ModelSet("two", BUILT_IN[0].models[:2])


def test_without_a_compiler_it_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    assert "neither g++ nor clang++ is installed" in str(Compiled.unavailable_reason(CPU))


@pytest.mark.slow
@pytest.mark.skipif(compiling.unavailable_reason(CPU) is not None, reason="there is no C++ compiler")
@pytest.mark.timeout(900)
@torch.inference_mode()
def test_the_raw_outputs_are_the_networks_and_nothing_is_kept_after_unloading(store: WeightsStore, photos: list[Path]):
    before = {id(each) for each in _parameters()}
    implementation = Compiled(SET, store, CPU)
    implementation.load()
    assert implementation.compile_s is not None
    assert implementation.compile_s > 1
    image = prepare(Image.open(photos[0]).convert("RGB"), SET.inputs)
    inputs = {config: implementation.stacked([image], config) for config in SET.inputs}
    for spec, found in zip(SET.models, implementation.forward(inputs), strict=True):
        for ours, theirs in zip(found, store.model(spec)(inputs[spec.input]), strict=True):
            for level, own in zip(ours, theirs, strict=True):
                assert (level - own).abs().max() < 1e-4 * own.abs().max()
    parameters = [weakref.ref(each) for each in _parameters() if id(each) not in before]
    assert parameters
    del implementation, found, ours, theirs, level, own
    gc.collect()
    assert not any(parameter() is not None for parameter in parameters)


def _parameters() -> list[torch.nn.Parameter]:
    return [each for each in gc.get_objects() if type(each) is torch.nn.Parameter]
