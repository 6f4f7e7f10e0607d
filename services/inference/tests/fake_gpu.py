"""A GPU at the edge of the world: the functions of NVML and of torch.cuda that tell its memory."""

import os
from types import SimpleNamespace

import pynvml
import pytest
import torch

GPU = torch.device("cuda:1")
MB = 1_000_000


class FakeGpu:
    """What in `errors` names one of NVML's functions raises. The GPU is known by `uuid`; memory is in MB.

    Attributes:
        used: by all processes.
        clocks_event_reasons: bits of nvmlClocksEventReasons.
        processes: process id to what it uses, as NVML lists them.
        allocated, reserved, allocated_peak, reserved_peak: torch's.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: dict[str, int] = {}
        self.uuid = "GPU-0123"
        self.used = 2
        self.clocks_event_reasons = 0
        self.processes: dict[int, int | None] = {os.getpid(): 2}
        self.allocated = self.reserved = self.allocated_peak = self.reserved_peak = 1
        answers = {
            "nvmlInit": lambda: None,
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda _: "the handle",
            "nvmlDeviceGetHandleByUUID": self._found,
            "nvmlDeviceGetUUID": lambda _: self.uuid,
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=self.used * MB, total=8 * MB),
            "nvmlDeviceGetComputeRunningProcesses": lambda _: [
                SimpleNamespace(pid=pid, usedGpuMemory=None if used is None else used * MB)
                for pid, used in self.processes.items()
            ],
            "nvmlDeviceGetClockInfo": lambda *_: 1410,
            "nvmlDeviceGetPowerUsage": lambda _: 312_500,
            "nvmlDeviceGetTotalEnergyConsumption": lambda _: 7_000_500,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda _: self.clocks_event_reasons,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(
                pynvml, name, lambda *arguments, name=name, answer=answer: self._answer(name, answer, arguments)
            )
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="0123"))
        for name, kind in (
            ("memory_allocated", "allocated"),
            ("memory_reserved", "reserved"),
            ("max_memory_allocated", "allocated_peak"),
            ("max_memory_reserved", "reserved_peak"),
        ):
            monkeypatch.setattr(torch.cuda, name, lambda device, kind=kind: {GPU: getattr(self, kind) * MB}[device])
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)

    def _answer(self, name: str, answer, arguments: tuple) -> object:
        if name in self.errors:
            raise pynvml.NVMLError(self.errors[name])
        return answer(*arguments)

    def _found(self, uuid: str) -> str:
        if uuid != self.uuid:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "the handle"

    def _reset(self, device: torch.device) -> None:
        assert device == GPU
        self.allocated_peak, self.reserved_peak = self.allocated, self.reserved
