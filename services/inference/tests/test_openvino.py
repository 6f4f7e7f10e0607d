"""OpenVINO: converted once, kept, and refused where it cannot run."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from detserver import openvino_network
from detserver.openvino_network import OpenVinoNetwork, unavailable_reason
from detserver.weights import WeightsStore
from detserver.zoo import BUILT_IN

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
    for ours, theirs in zip(network(pixels), expected, strict=True):
        for level, own in zip(ours, theirs, strict=True):
            assert (level - own).abs().max() < 1e-4 * own.abs().max()


def test_nothing_is_sent_to_anybody():
    openvino_network._openvino()
    assert sys.modules.get("openvino_telemetry") is None


def test_where_it_cannot_run_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    assert unavailable_reason(torch.device("cpu")) is None
    assert "DETSERVER_DEVICE=cpu" in str(unavailable_reason(torch.device("cuda")))
    monkeypatch.setattr(openvino_network, "find_spec", lambda _: None)
    assert "pip install 'detserver[openvino]'" in str(unavailable_reason(torch.device("cpu")))
