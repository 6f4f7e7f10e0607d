"""What NVIDIA's management library (NVML) tells of the GPU that torch uses: driver, clocks and memory."""

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pynvml
import torch

log = logging.getLogger(__name__)

T = TypeVar("T")

# Why a GPU lowers its clocks below what it could: bits of nvmlClocksEventReasons. Being idle, and clocks that somebody
# has set, are none of them.
_THROTTLE_REASONS = {
    "power cap": 0x4,
    "hardware slowdown": 0x8,
    "thermal, by software": 0x20,
    "thermal, by hardware": 0x40,
    "power brake": 0x80,
}


def memory_in_use() -> dict[str, int]:
    """Bytes that all processes use on each GPU of the machine, by UUID; empty where NVML does not tell.

    It makes no CUDA context, and is to be asked before torch makes one to know what that takes.
    """
    try:
        pynvml.nvmlInit()
        gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return {_text(pynvml.nvmlDeviceGetUUID(gpu)): int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used) for gpu in gpus}
    except pynvml.NVMLError:
        return {}


class Nvml:
    """NVML's view of a torch device, each question by itself: boards, virtual ones and slices (MIG) answer some only.

    On a CPU every answer is None. What NVML does not tell is None, and the log says so once per reason.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._handle: Any | None = None
        self._told: set[tuple[str, str]] = set()
        self._there = False
        if device.type == "cuda":
            try:
                pynvml.nvmlInit()
                self._there = True
            except pynvml.NVMLError as error:
                log.warning("NVML is not there, so the GPU's driver, clocks and memory are not told: %s", error)

    def driver(self) -> str | None:
        """Version of the GPU driver."""
        return self._ask("the driver's version", lambda: _text(pynvml.nvmlSystemGetDriverVersion()))

    def clocks_mhz(self) -> dict[str, int] | None:
        """Clocks of the processors and of the memory now, MHz, as far as they are told; None where neither is."""
        kinds = {"sm": pynvml.NVML_CLOCK_SM, "memory": pynvml.NVML_CLOCK_MEM}
        asked = {name: self._of_device(f"the {name} clock", partial(_clock, kind=kind)) for name, kind in kinds.items()}
        return {name: int(clock) for name, clock in asked.items() if clock is not None} or None

    def power_w(self) -> float | None:
        """Power draw of the board now, watts."""
        milliwatts = self._of_device("the power draw", pynvml.nvmlDeviceGetPowerUsage)
        return None if milliwatts is None else milliwatts / 1e3

    def energy_j(self) -> float | None:
        """Energy of the board since its driver was loaded, joules."""
        millijoules = self._of_device("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else millijoules / 1e3

    def throttle_reasons(self) -> list[str] | None:
        """Why the clocks are lower now than they could be; empty where they are not."""
        reasons = self._of_device("clocks' reasons", pynvml.nvmlDeviceGetCurrentClocksEventReasons)
        return None if reasons is None else [name for name, bit in _THROTTLE_REASONS.items() if reasons & bit]

    def state(self) -> dict[str, Any]:
        """Clocks, power, energy and throttle reasons now, by the names of these methods."""
        asked = (self.clocks_mhz, self.power_w, self.energy_j, self.throttle_reasons)
        return {question.__name__: question() for question in asked}

    def uuid(self) -> str | None:
        """Of the GPU, or of the slice of one."""
        return self._of_device("the UUID", lambda handle: _text(pynvml.nvmlDeviceGetUUID(handle)))

    def memory(self) -> tuple[int, int] | None:
        """Bytes of the GPU that all processes together use, and those that it has."""
        memory = self._of_device("memory", pynvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else (int(memory.used), int(memory.total))

    def memory_of_this_process(self) -> int | None:
        """Bytes of the GPU that this process uses: its CUDA context, kernels, and all that libraries allocate.

        None, too, where NVML does not list this process: in a container it lists the host's process ids, or none.
        """
        listed = self._of_device("the processes", pynvml.nvmlDeviceGetComputeRunningProcesses) or []
        own = [process.usedGpuMemory for process in listed if process.pid == os.getpid()]
        return int(own[0]) if own and own[0] is not None else None

    def _ask(self, what: str, question: Callable[[], T]) -> T | None:
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

    def _of_device(self, what: str, question: Callable[[Any], T]) -> T | None:
        return self._ask(what, lambda: question(self._found()))

    def _found(self) -> Any:
        if self._handle is None:
            # By UUID, because CUDA_VISIBLE_DEVICES renumbers torch's devices only.
            uuid = torch.cuda.get_device_properties(self._device).uuid
            try:
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            except pynvml.NVMLError:
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")  # a slice of a GPU
        return self._handle


def _clock(handle: Any, kind: int) -> Any:
    return pynvml.nvmlDeviceGetClockInfo(handle, kind)


def _text(answer: str | bytes) -> str:
    return answer.decode() if isinstance(answer, bytes) else answer  # bytes by older versions of pynvml
