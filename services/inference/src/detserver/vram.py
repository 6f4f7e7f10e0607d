"""GPU memory, by torch and by NVML; None everywhere where there is no GPU."""

from dataclasses import dataclass
from typing import Any

import pynvml
import torch


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
        self._nvml = _nvml_handle(device)

    def read(self) -> Vram:
        """Memory now; all None on a CPU, and the device's figures None where NVML cannot be had."""
        if self._device.type != "cuda":
            return Vram()
        used = total = None
        if self._nvml is not None:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._nvml)
            used, total = int(memory.used), int(memory.total)
        return Vram(
            torch.cuda.memory_allocated(self._device),
            torch.cuda.memory_reserved(self._device),
            torch.cuda.max_memory_allocated(self._device),
            used,
            total,
        )

    def reset_peak(self) -> None:
        """Start a new peak at what is allocated now; nothing on a CPU."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def driver(self) -> str | None:
        """Version of the GPU driver."""
        if self._nvml is None:
            return None
        version = pynvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)

    def clocks_mhz(self) -> dict[str, int] | None:
        """Clocks of the processors and of the memory now, MHz."""
        if self._nvml is None:
            return None
        kinds = {"sm": pynvml.NVML_CLOCK_SM, "memory": pynvml.NVML_CLOCK_MEM}
        return {name: int(pynvml.nvmlDeviceGetClockInfo(self._nvml, kind)) for name, kind in kinds.items()}


def _nvml_handle(device: torch.device) -> Any | None:
    """NVML's handle of a torch device, by UUID because CUDA_VISIBLE_DEVICES renumbers torch's devices only."""
    if device.type != "cuda":
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None
