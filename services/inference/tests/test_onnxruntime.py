"""ONNX Runtime: the network's own answers, exported once, and refused where it cannot run."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from small_detector import CPU, SMALL, assert_same_answers

from detserver.errors import CannotRun
from detserver.models.weights import WeightsStore
from detserver.recipes.backends import onnxruntime_network
from detserver.recipes.backends.onnxruntime_network import network, prepare, unavailable_reason

pytestmark = [
    pytest.mark.skipif(unavailable_reason(CPU) is not None, reason="the extra onnxruntime is not installed"),
    pytest.mark.xdist_group("small_detector"),  # one process exports for all
]


@pytest.mark.slow
def test_its_answers_are_eager_ones(store: WeightsStore, photos: list[Path]):
    assert_same_answers(network(SMALL, store, "fp32", CPU), store, photos)


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_has_exported(store: WeightsStore):
    prepare(SMALL, store, "fp32")
    kept = sorted(path.name for path in (store.cache_dir / "onnxruntime").glob(f"{SMALL.identity}_*"))
    assert not any(name.endswith(".partial") for name in kept), "nothing half-made is left"
    code = f"""
import torch
from small_detector import CPU, SMALL
from detserver.models.weights import WeightsStore
from detserver.recipes.backends import onnxruntime_network
from pathlib import Path

onnxruntime_network.exported = None  # what an export would start with
store = WeightsStore(Path({str(store.cache_dir.parent / "weights")!r}), Path({str(store.cache_dir)!r}), 2, False)
network = onnxruntime_network.network(SMALL, store, "fp32", CPU)
print(network.precision, len(network(torch.zeros(1, 3, *SMALL.input.size))[0]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.stdout == "fp32 5\n", done.stderr
    assert sorted(path.name for path in (store.cache_dir / "onnxruntime").glob(f"{SMALL.identity}_*")) == kept


def test_a_batch_gives_what_its_images_give_one_by_one(store: WeightsStore):
    run = network(SMALL, store, "fp32", CPU)
    pixels = torch.randn(3, 3, *SMALL.input.size, generator=torch.Generator().manual_seed(0))
    alone = [[level.clone() for levels in run(image[None]) for level in levels] for image in pixels]
    for layout in (torch.contiguous_format, torch.channels_last):
        together = [level for levels in run(pixels.contiguous(memory_format=layout)) for level in levels]
        for level, *parts in zip(together, *alone, strict=True):
            torch.testing.assert_close(level, torch.cat(parts), rtol=1e-4, atol=1e-4)


def test_another_precision_is_refused(store: WeightsStore):
    with pytest.raises(CannotRun, match="fp32 here, not in bf16"):
        network(SMALL, store, "bf16", CPU)


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx", "onnxscript"])
def test_what_is_not_installed_is_said_with_how_to_install_it(missing: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnxruntime_network, "find_spec", lambda name: None if name == missing else find_spec(name))
    assert unavailable_reason(CPU) == "ONNX Runtime is not installed: pip install 'detserver[onnxruntime]'"


@pytest.mark.skipif(find_spec("onnxruntime") is None or torch.cuda.is_available(), reason="it may have CUDA")
def test_a_gpu_needs_the_package_that_has_cuda():
    assert "pip install onnxruntime-gpu" in str(unavailable_reason(torch.device("cuda")))
