"""Memory that this process takes, now and at its peak: on the GPU by torch and by NVML, in RAM by the kernel."""

import ctypes
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from detserver.machine.nvml import Nvml

_SAMPLE_EVERY_S = 0.02


@dataclass(frozen=True)
class Vram:
    """GPU memory, bytes; all None on a CPU. Peaks are since the last reset.

    Attributes:
        allocated: by torch's tensors.
        reserved: by torch's allocator, from which tensors, and the pools of CUDA graphs, are taken.
        allocated_peak: without what a CUDA graph uses while it is replayed.
        reserved_peak: with the pools of CUDA graphs.
        process: by this process, by NVML: torch's part, the CUDA context, and what libraries allocate themselves.
        process_peak: the largest `process` that was seen, or what it was when torch had reserved most, if that is more.
        device_used: by all processes on the GPU, by NVML.
        device_total: what the GPU has, by NVML.
    """

    allocated: int | None = None
    reserved: int | None = None
    allocated_peak: int | None = None
    reserved_peak: int | None = None
    process: int | None = None
    process_peak: int | None = None
    device_used: int | None = None
    device_total: int | None = None


@dataclass(frozen=True)
class Resident:
    """RAM of this process, bytes, shared libraries and mapped files among it; None where there is no /proc.

    Attributes:
        now: resident set size.
        peak: the largest since the last reset.
    """

    now: int | None = None
    peak: int | None = None


class VramMonitor:
    """Reads the GPU memory of this process.

    Where NVML does not list this process (in a container it knows the host's process ids only), what the process takes
    is what the GPU's use has grown by since `in_use_before`: right for as long as no other process on the GPU
    allocates or frees, and never less than what torch has reserved.

    Args:
        device: of torch.
        nvml: of that device.
        in_use_before: `nvml.memory_in_use()` before this process made its CUDA context.
    """

    def __init__(self, device: torch.device, nvml: Nvml, in_use_before: Mapping[str, int]) -> None:
        self._device = device
        self._nvml = nvml
        self._used_before = in_use_before.get(nvml.uuid() or "")
        self._process_peak = 0

    def read(self) -> Vram:
        """Memory now; all None on a CPU, and NVML's figures None where it does not tell them."""
        if self._device.type != "cuda":
            return Vram()
        reserved, reserved_peak = torch.cuda.memory_reserved(self._device), torch.cuda.max_memory_reserved(self._device)
        used, total = self._nvml.memory() or (None, None)
        process = self._nvml.memory_of_this_process()
        # Less than torch's part is another process's entry: a process id of a container may be one of the host's, too.
        if (process is None or process < reserved) and used is not None and self._used_before is not None:
            process = max(used - self._used_before, reserved)
        if process is not None:
            self._process_peak = max(self._process_peak, process + reserved_peak - reserved)
        return Vram(
            allocated=torch.cuda.memory_allocated(self._device),
            reserved=reserved,
            allocated_peak=torch.cuda.max_memory_allocated(self._device),
            reserved_peak=reserved_peak,
            process=process,
            process_peak=None if process is None else self._process_peak,
            device_used=used,
            device_total=total,
        )

    def reset_peaks(self) -> None:
        """Start new peaks at what is taken now; nothing on a CPU."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._process_peak = 0


class ResidentMonitor:
    """Reads the resident memory of this process.

    The kernel keeps the peak itself. Where it may not be reset (a container may have /proc read-only), a thread looks
    50 times a second from the first reset on, and a peak between two looks counts only where it is the highest of all.

    Args:
        proc: the folder of a process in procfs.
    """

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc
        self._sampled_peak = 0
        self._peak_at_reset: int | None = None
        self._sampler: threading.Thread | None = None

    def read(self) -> Resident:
        """Memory now, and its peak."""
        now, peak = self._status()
        if now is None or peak is None or self._peak_at_reset is None or peak > self._peak_at_reset:
            return Resident(now, peak)
        return Resident(now, max(self._sampled_peak, now))

    def reset_peak(self) -> None:
        """Start a new peak at what is resident now."""
        try:
            (self._proc / "clear_refs").write_text("5")  # proc(5): resets the peak, and nothing else
        except OSError:
            self._sampled_peak = 0
            _, self._peak_at_reset = self._status()
            if self._sampler is None:
                self._sampler = threading.Thread(target=self._sample, name="resident memory", daemon=True)
                self._sampler.start()

    def _status(self) -> tuple[int, int] | tuple[None, None]:
        """`VmRSS` and `VmHWM` of proc(5), bytes."""
        try:
            lines = (self._proc / "status").read_text().splitlines()
        except OSError:
            return None, None
        kilobytes = {name: value for name, _, value in (line.partition(":") for line in lines)}
        now, peak = (int(kilobytes[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak

    def _sample(self) -> None:
        while (now := self._status()[0]) is not None:
            self._sampled_peak = max(self._sampled_peak, now)
            time.sleep(_SAMPLE_EVERY_S)


def give_free_memory_back() -> None:
    """Let the system have what the C library keeps of freed memory, where that can be asked for (glibc).

    It keeps blocks of up to 32 MB, in each thread's own part: some pictures of 50 megapixels leave hundreds of MB.
    """
    if _trim is not None:
        _trim(0)


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
