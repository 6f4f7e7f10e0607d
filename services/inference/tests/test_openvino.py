"""OpenVINO: converted once, kept, and refused where it cannot run."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from detserver.implementations.fastest import Fastest, FusedBf16
from detserver.implementations.openvino import OpenVino
from effdet.efficientdet import EfficientDet

from detserver.implementations import fastest
from detserver.models.model_sets import BUILT_IN, ModelSet
from detserver.models.weights import WeightsStore
from detserver.recipes import choice, openvino_network
from detserver.recipes.openvino_network import OpenVinoNetwork, unavailable_reason

SPEC = BUILT_IN[1].models[1]

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")


@torch.inference_mode()
def test_raw_outputs_are_the_networks_and_the_conversion_is_kept(
    store: WeightsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pixels = torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    expected = store.model(SPEC)(pixels)
    folder = tmp_path / "network"
    OpenVinoNetwork(store.model(SPEC), SPEC.name, folder, torch.float32)
    assert [each.name for each in tmp_path.iterdir()] == ["network"], "nothing half-made is left"
    monkeypatch.setattr(openvino_network, "_convert", lambda *_: pytest.fail("converted again"))
    network = OpenVinoNetwork(store.model(SPEC), SPEC.name, folder, torch.float32)
    assert network.precision == "f32"
    for ours, theirs in zip(network(pixels), expected, strict=True):
        for level, own in zip(ours, theirs, strict=True):
            assert (level - own).abs().max() < 1e-4 * own.abs().max()


class InFloat32:
    """A network of OpenVINO's on a CPU that has no bfloat16."""

    precision = "f32"

    def __init__(self, model: EfficientDet) -> None:
        self._model = model

    def __call__(self, pixels: torch.Tensor):
        return self._model(pixels.float())


def test_a_precision_that_the_cpu_does_not_have_is_told(store: WeightsStore, monkeypatch: pytest.MonkeyPatch):
    one = ModelSet("one", (SPEC,))
    monkeypatch.setattr(choice, "_read", lambda *_: {"openvino": 1.0, "folded, channels_last": 2.0})
    monkeypatch.setattr(
        fastest, "openvino_networks", lambda _, models, *__: [(SPEC.input, InFloat32(model)) for model in models]
    )
    implementation = FusedBf16(one, store, torch.device("cpu"))
    implementation.load()
    assert implementation.remark.startswith("openvino (one image on this machine: ")
    assert implementation.remark.endswith("; one image at a time; in float32: OpenVINO has no bfloat16 on this CPU")
    implementation = Fastest(one, store, torch.device("cpu"))
    implementation.load()
    assert implementation.remark.endswith("; one image at a time")


def test_converting_is_no_part_of_a_load(store: WeightsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = ModelSet("one", (SPEC,))
    monkeypatch.setattr(store, "cache_dir", tmp_path)
    prepared = OpenVino(one, store, torch.device("cpu"))
    prepared.prepare()
    monkeypatch.setattr(openvino_network, "_convert", lambda *_: pytest.fail("converted in a load"))
    for each in (prepared, Fastest(one, store, torch.device("cpu"))):
        each.prepare()
        each.load()


def test_nothing_is_sent_to_anybody():
    openvino_network._openvino()
    assert sys.modules.get("openvino_telemetry") is None


def test_where_it_cannot_run_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    assert unavailable_reason(torch.device("cpu")) is None
    assert "DETSERVER_DEVICE=cpu" in str(unavailable_reason(torch.device("cuda")))
    monkeypatch.setattr(openvino_network, "find_spec", lambda _: None)
    assert "pip install 'detserver[openvino]'" in str(unavailable_reason(torch.device("cpu")))
