"""What NVML does not tell is null, and nothing else is."""

import logging
from types import SimpleNamespace

import pynvml
import pytest
import torch
from fastapi.testclient import TestClient

from detserver.http import server
from detserver.http.routes import create_app
from detserver.machine.vram import VramMonitor
from detserver.settings import Settings

GPU = torch.device("cuda:1")


class FakeNvml:
    """NVML's functions; what is in `errors` raises. The GPU is known by `uuid`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: dict[str, int] = {}
        self.uuid = "GPU-0123"
        self.answers = {
            "nvmlInit": None,
            "nvmlSystemGetDriverVersion": "580.1",
            "nvmlDeviceGetHandleByUUID": "the handle",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2_000_000, total=8_000_000),
            "nvmlDeviceGetClockInfo": 1410,
        }
        for name in self.answers:
            monkeypatch.setattr(pynvml, name, lambda *arguments, name=name: self.answer(name, *arguments))

    def answer(self, name: str, *arguments: object) -> object:
        if name in self.errors:
            raise pynvml.NVMLError(self.errors[name])
        if name == "nvmlDeviceGetHandleByUUID" and arguments != (self.uuid,):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self.answers[name]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="0123"))
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: {GPU: 1_000_000}[device])
    return FakeNvml(monkeypatch)


def test_everything_is_told_where_nvml_knows_it(nvml: FakeNvml):
    monitor = VramMonitor(GPU)
    assert (monitor.read().device_used, monitor.read().device_total) == (2_000_000, 8_000_000)
    assert (monitor.driver(), monitor.clocks_mhz()) == ("580.1", {"sm": 1410, "memory": 1410})


def test_a_slice_of_a_gpu_is_found_by_its_own_uuid(nvml: FakeNvml):
    nvml.uuid = "MIG-0123"
    assert VramMonitor(GPU).read().device_used == 2_000_000


@pytest.mark.parametrize(
    ("errors", "used_mb", "driver", "clocks"),
    [
        ({"nvmlDeviceGetMemoryInfo": pynvml.NVML_ERROR_NOT_SUPPORTED}, None, "580.1", 1410),
        ({"nvmlDeviceGetMemoryInfo": pynvml.NVML_ERROR_NO_PERMISSION}, None, "580.1", 1410),
        ({"nvmlDeviceGetClockInfo": pynvml.NVML_ERROR_NOT_SUPPORTED}, 2, "580.1", None),
        ({"nvmlSystemGetDriverVersion": pynvml.NVML_ERROR_UNKNOWN}, 2, None, 1410),
        ({"nvmlDeviceGetHandleByUUID": pynvml.NVML_ERROR_NOT_FOUND}, None, "580.1", None),
        (
            dict.fromkeys(("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetClockInfo"), pynvml.NVML_ERROR_GPU_IS_LOST),
            None,
            "580.1",
            None,
        ),
        ({"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}, None, None, None),
        ({"nvmlInit": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}, None, None, None),
    ],
)
def test_what_nvml_does_not_tell_is_null_in_every_answer_and_said_once(
    nvml: FakeNvml,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    errors: dict,
    used_mb,
    driver,
    clocks,
):
    nvml.errors = errors
    monkeypatch.setattr(server, "VramMonitor", lambda _: VramMonitor(GPU))
    client = TestClient(create_app(Settings(device="cpu", preload=[])))
    caplog.set_level(logging.WARNING)
    told = None
    for _ in range(2):
        health, vram, metrics = (client.get(path) for path in ("/health", "/vram", "/metrics"))
        assert (health.status_code, vram.status_code, metrics.status_code) == (200, 200, 200)
        assert (vram.json()["device_used_mb"], vram.json()["allocated_mb"]) == (used_mb, 1.0)
        assert health.json()["driver"] == driver
        assert (health.json()["clocks_mhz"] or {}).get("sm") == clocks
        assert 'detserver_vram_bytes{kind="allocated"} 1e+06' in metrics.text
        assert ('kind="device_used"' in metrics.text) == (used_mb is not None)
        said = [record.getMessage() for record in caplog.records if record.name == "detserver.machine.vram"]
        assert said
        assert said == (told or said)
        told = said
