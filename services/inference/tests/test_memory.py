"""Memory is told as it is: the process's by NVML and by the kernel; what NVML does not tell is null, nothing else."""

import logging
import os
import time
from pathlib import Path

import httpx
import numpy as np
import pynvml
import pytest
import torch
from fake_gpu import GPU, MB, FakeGpu
from fastapi.testclient import TestClient
from running_server import RunningServer

from detserver.http import server
from detserver.http.routes import create_app
from detserver.machine.memory import ResidentMonitor, VramMonitor
from detserver.machine.nvml import Nvml, memory_in_use
from detserver.settings import Settings


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


def monitored(gpu: FakeGpu, used_before: int = 0) -> VramMonitor:
    """A monitor of a process that began when all others used so many MB."""
    used, gpu.used = gpu.used, used_before
    before = memory_in_use()
    gpu.used = used
    return VramMonitor(GPU, Nvml(GPU), before)


def test_everything_is_told_where_nvml_knows_it(gpu: FakeGpu):
    vram = monitored(gpu).read()
    assert (vram.process, vram.device_used, vram.device_total) == (2 * MB, 2 * MB, 8 * MB)
    assert (Nvml(GPU).driver(), Nvml(GPU).clocks_mhz()) == ("580.1", {"sm": 1410, "memory": 1410})


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (0, []),
        (0x1, []),  # idle
        (0x2, []),  # clocks that somebody has set
        (0x4, ["power cap"]),
        (0x8 | 0x40, ["hardware slowdown", "thermal, by hardware"]),
        (0x20 | 0x80, ["thermal, by software", "power brake"]),
    ],
)
def test_power_energy_and_why_clocks_are_lowered_are_told(gpu: FakeGpu, bits: int, reasons: list[str]):
    gpu.clocks_event_reasons = bits
    nvml = Nvml(GPU)
    assert (nvml.power_w(), nvml.energy_j(), nvml.throttle_reasons()) == (312.5, 7000.5, reasons)


def test_without_a_gpu_nothing_of_it_is_told():
    nvml = Nvml(torch.device("cpu"))
    assert (nvml.clocks_mhz(), nvml.power_w(), nvml.energy_j(), nvml.throttle_reasons()) == (None,) * 4


def test_a_slice_of_a_gpu_is_found_by_its_own_uuid(gpu: FakeGpu):
    gpu.uuid = "MIG-0123"
    assert monitored(gpu).read().device_used == 2 * MB


def test_the_peak_of_the_process_has_what_torch_had_reserved_meanwhile_until_it_is_reset(gpu: FakeGpu):
    monitor = monitored(gpu)
    gpu.processes[os.getpid()], gpu.reserved, gpu.reserved_peak = 500, 300, 700
    assert monitor.read().process_peak == 900 * MB
    gpu.processes[os.getpid()], gpu.reserved, gpu.reserved_peak = 400, 300, 300
    vram = monitor.read()
    assert (vram.process, vram.process_peak) == (400 * MB, 900 * MB)
    monitor.reset_peaks()
    assert monitor.read().process_peak == 400 * MB


@pytest.mark.parametrize(
    "processes",
    [
        pytest.param({}, id="NVML lists nobody"),
        pytest.param({os.getpid() + 1: 3000}, id="NVML lists the host's ids"),
        pytest.param({os.getpid(): None}, id="NVML does not tell how much"),
        pytest.param({os.getpid(): 10}, id="a process of the host has this one's id"),
    ],
)
def test_in_a_container_the_process_has_what_the_gpu_uses_more_than_before_it(gpu: FakeGpu, processes: dict):
    monitor = monitored(gpu, used_before=1000)
    gpu.processes, gpu.used, gpu.reserved = processes, 3500, 2000
    assert monitor.read().process == 2500 * MB
    gpu.used = 2900  # another process has ended
    assert monitor.read().process == 2000 * MB


@pytest.mark.parametrize(
    ("errors", "used_mb", "process_mb", "driver", "clocks"),
    [
        ({"nvmlDeviceGetMemoryInfo": pynvml.NVML_ERROR_NOT_SUPPORTED}, None, 2, "580.1", 1410),
        ({"nvmlDeviceGetMemoryInfo": pynvml.NVML_ERROR_NO_PERMISSION}, None, 2, "580.1", 1410),
        ({"nvmlDeviceGetComputeRunningProcesses": pynvml.NVML_ERROR_NOT_SUPPORTED}, 2, 2, "580.1", 1410),
        ({"nvmlDeviceGetClockInfo": pynvml.NVML_ERROR_NOT_SUPPORTED}, 2, 2, "580.1", None),
        ({"nvmlSystemGetDriverVersion": pynvml.NVML_ERROR_UNKNOWN}, 2, 2, None, 1410),
        ({"nvmlDeviceGetHandleByUUID": pynvml.NVML_ERROR_NOT_FOUND}, None, None, "580.1", None),
        (
            dict.fromkeys(
                ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetClockInfo"),
                pynvml.NVML_ERROR_GPU_IS_LOST,
            ),
            None,
            None,
            "580.1",
            None,
        ),
        ({"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}, None, None, None, None),
        ({"nvmlInit": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}, None, None, None, None),
    ],
)
def test_what_nvml_does_not_tell_is_null_in_every_answer_and_said_once(
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    errors: dict,
    used_mb,
    process_mb,
    driver,
    clocks,
):
    gpu.errors = errors
    monkeypatch.setattr(server, "Nvml", lambda _: Nvml(GPU))
    monkeypatch.setattr(server, "VramMonitor", lambda _, nvml, __: monitored(gpu))
    client = TestClient(create_app(Settings(device="cpu", preload=[])))
    caplog.set_level(logging.WARNING)
    told = None
    for _ in range(2):
        health, vram, metrics = (client.get(path) for path in ("/health", "/vram", "/metrics"))
        assert (health.status_code, vram.status_code, metrics.status_code) == (200, 200, 200)
        found = vram.json()
        assert (found["device_used_mb"], found["process_mb"], found["process_peak_mb"], found["allocated_mb"]) == (
            used_mb,
            process_mb,
            process_mb,
            1.0,
        )
        assert health.json()["driver"] == driver
        assert (health.json()["clocks_mhz"] or {}).get("sm") == clocks
        assert 'detserver_vram_bytes{kind="allocated"} 1e+06' in metrics.text
        assert ('kind="device_used"' in metrics.text) == (used_mb is not None)
        said = [record.getMessage() for record in caplog.records if record.name == "detserver.machine.nvml"]
        assert said
        assert said == (told or said)
        told = said


def proc_says(server: RunningServer) -> dict[str, float]:
    """`VmRSS` and `VmHWM` of a server, MB."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return {
        name: int(value.split()[0]) * 1024 / MB
        for name, value in (line.split(":", 1) for line in lines)
        if "kB" in value
    }


@pytest.mark.slow
def test_a_server_tells_what_proc_says_of_it_and_its_peak_of_each_load(start_server, photos: list[Path]):
    server = start_server(preload="none")

    def memory(path: str = "/vram", method: str = "GET") -> dict:
        return httpx.request(method, server.url + path, timeout=30).raise_for_status().json()

    empty = memory("/vram/reset", "POST")
    assert empty["resident_peak_mb"] == pytest.approx(empty["resident_mb"], rel=0.05)
    assert server.infer("baseline", files={"file": photos[0].read_bytes()}).status_code == 200
    loaded, said = memory(), proc_says(server)
    assert loaded["resident_mb"] == pytest.approx(said["VmRSS"], rel=0.05)
    assert loaded["resident_peak_mb"] == pytest.approx(said["VmHWM"], rel=0.05)
    assert loaded["resident_peak_mb"] > 1.1 * empty["resident_peak_mb"]
    httpx.post(f"{server.url}/implementations/baseline/unload", timeout=30).raise_for_status()
    again = memory("/vram/reset", "POST")
    assert again["resident_peak_mb"] < loaded["resident_peak_mb"], "a reset begins at what is taken now"
    metrics = httpx.get(server.url + "/metrics").text
    assert 'detserver_resident_bytes{kind="now"}' in metrics
    assert 'detserver_resident_bytes{kind="peak"}' in metrics
    if not torch.cuda.is_available():
        vram = {name for name in loaded if name != "device" and not name.startswith("resident")}
        assert {loaded[name] for name in vram} == {None}
        assert "detserver_vram_bytes{" not in metrics


@pytest.fixture
def read_only_proc(tmp_path: Path) -> Path:
    """This process's /proc as a container may have it, where nothing can be written."""
    (tmp_path / "status").symlink_to("/proc/self/status")
    (tmp_path / "clear_refs").mkdir()
    return tmp_path


def take(megabytes: int) -> None:
    """Take memory for as long as a sampler needs to see it, and give it back."""
    block = np.ones(megabytes * MB, dtype=np.uint8)
    time.sleep(0.2)
    del block


def test_where_the_kernels_peak_cannot_be_reset_samples_make_one(read_only_proc: Path):
    monitor = ResidentMonitor(read_only_proc)
    take(400)
    start = monitor.read()
    assert start.peak > start.now + 300 * MB
    monitor.reset_peak()
    assert monitor.read().peak < start.peak - 300 * MB, "what was before the reset does not count"
    take(200)
    assert monitor.read().peak == pytest.approx(start.now + 200 * MB, abs=60 * MB)
    take(600)
    assert monitor.read().peak > start.now + 500 * MB
    monitor.reset_peak()
    assert monitor.read().peak < start.now + 100 * MB


def test_without_proc_nothing_is_told(tmp_path: Path):
    monitor = ResidentMonitor(tmp_path / "nothing")
    monitor.reset_peak()
    assert (monitor.read().now, monitor.read().peak) == (None, None)
