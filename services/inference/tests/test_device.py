"""The device: found, claimed by its thread, and given up when it answers nothing but errors. The GPU is a fake."""

import asyncio
import io
import threading
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image
from running_server import stop

from detserver.engine.admission import Admission
from detserver.engine.engine import Engine
from detserver.errors import BadConfiguration
from detserver.implementations import Registry
from detserver.machine import device
from detserver.machine.device import usable_device, why_broken
from detserver.models.weights import WeightsStore

CPU = torch.device("cpu")
SECOND = torch.device("cuda:1")
STICKY = "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`"


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.device]]:
    """A machine with two GPUs; which thread has claimed which."""
    found: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda each: found.append((threading.current_thread().name, each)))
    monkeypatch.setattr(device.torch, "zeros", lambda *_, device: None)
    return found


@pytest.mark.parametrize(
    ("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)], ids=lambda value: str(value)
)
def test_a_gpu_is_claimed_with_its_index(claimed: list, name: str, index: int):
    found = usable_device(name)
    assert (found.type, found.index) == ("cuda", index)
    assert claimed == [("MainThread", found)]


def test_a_gpu_that_is_not_there_is_told_with_those_that_are(claimed: list):
    with pytest.raises(
        BadConfiguration, match=r"^DETSERVER_DEVICE=cuda:2: there is no such GPU; torch sees cuda:0 to cuda:1$"
    ):
        usable_device("cuda:2")
    assert claimed == []


@pytest.mark.parametrize("name", ["mps", "meta", "xpu:0"])
def test_what_the_server_does_not_run_on_is_refused(name: str):
    with pytest.raises(BadConfiguration, match="the server runs on cuda and on cpu"):
        usable_device(name)


def test_a_gpu_that_does_not_work_is_told_in_one_line_with_a_way_out(claimed: list, monkeypatch: pytest.MonkeyPatch):
    def broken(*_, device: torch.device):
        raise torch.AcceleratorError(STICKY)

    monkeypatch.setattr(device.torch, "zeros", broken)
    reason = "^DETSERVER_DEVICE=cuda:1 cannot be used: CUDA error: an illegal memory access was encountered. [^\n]*=cpu"
    with pytest.raises(BadConfiguration, match=reason):
        usable_device("cuda:1")


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device("auto") == CPU == usable_device("cpu:0")


def test_the_thread_that_uses_a_gpu_claims_it(claimed: list, tmp_path: Path):
    engine = Engine(Registry(), WeightsStore(tmp_path, tmp_path, seed=0), SECOND, Admission(1, 1, 1))
    engine.start()
    thread = asyncio.run(engine.call(lambda: threading.current_thread().name))
    engine.stop()
    assert claimed == [(thread, SECOND)]
    assert thread == "device"


class Failing:
    """In place of `synchronize`: fails as often as it is to, and then no more."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, _: torch.device) -> None:
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ([], None),
        ([torch.AcceleratorError(STICKY)], None),
        ([torch.AcceleratorError(STICKY)] * 2, "CUDA error: an illegal memory access was encountered"),
        ([RuntimeError("CUDA error: unspecified launch failure")] * 2, "CUDA error: unspecified launch failure"),
        ([torch.OutOfMemoryError("CUDA out of memory")] * 2, None),
    ],
)
def test_a_device_is_broken_when_it_fails_again(monkeypatch: pytest.MonkeyPatch, errors: list, reason: str | None):
    monkeypatch.setattr(device, "synchronize", Failing(*errors))
    assert why_broken(CPU) == reason


def test_the_cpu_is_asked_the_same_way():
    assert why_broken(CPU) is None


PROGRAM = f"""
import sys, threading
import torch
from detserver import __main__
from detserver.machine import device
from detserver.implementations import base
from detserver.implementations.invalid import Invalid

broken = threading.Event()
answer = Invalid.predict

def synchronize(_):
    if broken.is_set():
        raise torch.AcceleratorError({STICKY!r})

def predict(self, image):
    if image.width == 14:
        broken.set()
    return answer(self, image)

device.synchronize = base.synchronize = synchronize
Invalid.predict = predict
sys.exit(__main__.main())
"""


@pytest.mark.slow
def test_a_server_whose_device_is_broken_says_so_and_ends(start_server):
    server = start_server(preload="invalid", device="cpu", program=("-c", PROGRAM))
    reason = "cpu answers nothing but errors, and the server ends: CUDA error: an illegal memory access was encountered"
    try:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            ask = {"content": photo(14), "headers": {"Content-Type": "image/png"}}
            assert client.post("/infer/invalid", content=photo(15), headers=ask["headers"]).status_code == 200
            for _ in range(2):
                answer = client.post("/infer/invalid", **ask)
                assert (answer.status_code, answer.json()["detail"]) == (503, reason)
            ready = client.get("/ready")
            assert (ready.status_code, ready.json()) == (503, {"detail": reason, "failed": True})
            assert client.get("/health").json()["status"] == "failed"
        assert server.process.wait(30) == 1
        assert sum("CRITICAL" in line and reason in line for line in server.log.splitlines()) == 1
    finally:
        stop(server)


def photo(width: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 10)).save(file, "png")
    return file.getvalue()
