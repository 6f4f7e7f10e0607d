"""GPU memory, by torch and by NVML; None everywhere where there is no GPU."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pynvml
import torch

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Vram:
    """Bytes. `peak` is torch's, since the last reset; the device's figures count every process on it."""

    allocated: int | None = None
    reserved: int | None = None
    peak: int | None = None
    device_used: int | None = None
    device_total: int | None = None


class VramMonitor:
    """Reads the memory of one torch device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._nvml = _Nvml(device) if device.type == "cuda" else None

    def read(self) -> Vram:
        """Memory now; all None on a CPU, and the device's figures None where NVML does not tell them."""
        if self._nvml is None:
            return Vram()
        memory = self._nvml.of_device("memory", pynvml.nvmlDeviceGetMemoryInfo)
        return Vram(
            torch.cuda.memory_allocated(self._device),
            torch.cuda.memory_reserved(self._device),
            torch.cuda.max_memory_allocated(self._device),
            None if memory is None else int(memory.used),
            None if memory is None else int(memory.total),
        )

    def reset_peak(self) -> None:
        """Start a new peak at what is allocated now; nothing on a CPU."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def driver(self) -> str | None:
        """Version of the GPU driver; None where it is not told."""
        if self._nvml is None:
            return None
        version = self._nvml.ask("the driver's version", pynvml.nvmlSystemGetDriverVersion)
        return version.decode() if isinstance(version, bytes) else version

    def clocks_mhz(self) -> dict[str, int] | None:
        """Clocks of the processors and of the memory now, MHz, as far as they are told; None where neither is."""
        if self._nvml is None:
            return None
        kinds = {"sm": pynvml.NVML_CLOCK_SM, "memory": pynvml.NVML_CLOCK_MEM}
        asked = {
            name: self._nvml.of_device(f"the {name} clock", partial(_clock, kind=kind)) for name, kind in kinds.items()
        }
        return {name: int(clock) for name, clock in asked.items() if clock is not None} or None


class _Nvml:
    """NVML's view of a torch GPU, each question by itself: boards, virtual ones and slices (MIG) answer some only."""

    def __init__(self, device: torch.device) -> None:
        # By UUID, because CUDA_VISIBLE_DEVICES renumbers torch's devices only.
        self._uuid = torch.cuda.get_device_properties(device).uuid
        self._handle: Any | None = None
        self._told: set[tuple[str, str]] = set()
        try:
            pynvml.nvmlInit()
            self._there = True
        except pynvml.NVMLError as error:
            self._there = False
            log.warning("NVML is not there, so the GPU's driver, clocks and memory are not told: %s", error)

    def ask(self, what: str, question: Callable[[], T]) -> T | None:
        """The answer to `question`; None where there is none, which the log says once per reason."""
        if not self._there:
            return None
        try:
            return question()
        except pynvml.NVMLError as error:
            reason = (what, str(error))
            if reason not in self._told:
                self._told.add(reason)
                log.warning("NVML does not tell %s: %s", *reason)
            return None

    def of_device(self, what: str, question: Callable[[Any], T]) -> T | None:
        """The answer to `question`, which takes NVML's handle of the GPU."""
        return self.ask(what, lambda: question(self._found()))

    def _found(self) -> Any:
        if self._handle is None:
            try:
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{self._uuid}")
            except pynvml.NVMLError:
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{self._uuid}")  # a slice of a GPU
        return self._handle


def _clock(handle: Any, kind: int) -> Any:
    return pynvml.nvmlDeviceGetClockInfo(handle, kind)
