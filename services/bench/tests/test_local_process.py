"""Memory of a server that tells none, by the process that listens on its port."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pynvml
import pytest

from detbench.api import local_process
from detbench.api.local_process import LocalProcess

# A parent that listens, and a child that holds 60 MB.
SERVER = """
import socket, subprocess, sys
listening = socket.create_server(("127.0.0.1", 0))
child = subprocess.Popen([sys.executable, "-c", "held = b'x' * 60_000_000; print('held', flush=True); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(listening.getsockname()[1], flush=True)
input()
"""


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, f"http://127.0.0.1:{process.stdout.readline().strip()}"
        for child in psutil.Process(process.pid).children():
            child.terminate()
        process.terminate()


def test_a_servers_children_count_and_its_peak_stays(server):
    process, host = server
    found = LocalProcess(host)
    assert found.found
    before = found.memory()
    assert before.resident_mb is not None
    assert before.resident_mb > 60
    (child,) = psutil.Process(process.pid).children()
    child.terminate()
    while child.status() != psutil.STATUS_ZOMBIE:  # its parent asks for it no more
        time.sleep(0.01)
    after = found.memory()
    assert after.resident_mb is not None
    assert after.resident_mb < before.resident_mb - 50
    assert after.resident_peak_mb == pytest.approx(before.resident_peak_mb, abs=1)
    found.reset_peaks()
    assert found.memory().resident_peak_mb == pytest.approx(after.resident_mb, abs=5)


def test_what_started_a_server_counts_unless_it_is_this_process():
    starter = f"import subprocess, sys; held = b'x' * 90_000_000; subprocess.run([sys.executable, '-c', {SERVER!r}])"
    for apart, least, most in ((True, 150, 400), (False, 60, 150)):
        with subprocess.Popen(
            [sys.executable, "-c", starter],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=apart,
        ) as process:
            assert process.stdout is not None
            memory = LocalProcess(f"http://127.0.0.1:{process.stdout.readline().strip()}").memory()
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.terminate()
        assert memory.resident_mb is not None
        assert least < memory.resident_mb < most


@pytest.mark.parametrize("host", ["http://127.0.0.1:1", "http://192.0.2.1:8000", "http://no.such.host.invalid"])
def test_a_server_that_is_not_here_has_no_memory(host: str):
    found = LocalProcess(host)
    assert not found.found
    assert (found.memory().resident_mb, found.memory().process_mb) == (None, None)


@dataclass
class UsesGpu:
    pid: int
    usedGpuMemory: int | None  # noqa: N815 (NVML's name)


def test_gpu_memory_is_that_of_the_servers_processes_alone(server, monkeypatch: pytest.MonkeyPatch):
    process, host = server
    (child,) = psutil.Process(process.pid).children()
    on_gpus = {
        0: [UsesGpu(process.pid, 300_000_000), UsesGpu(1, 9_000_000_000)],
        1: [UsesGpu(child.pid, 200_000_000), UsesGpu(process.pid, None)],
    }
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(on_gpus))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", on_gpus.__getitem__)
    assert LocalProcess(host).memory().process_mb == 500
    on_gpus.clear()
    assert LocalProcess(host).memory().process_mb is None


def test_without_nvml_there_is_no_figure():
    assert local_process._gpu_bytes({1}) is None
