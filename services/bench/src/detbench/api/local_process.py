"""Memory of a server that tells none, by the process that listens on its port, where that is on this machine."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import psutil
import pynvml

from detbench.api.schemas import VramStatus


class LocalProcess:
    """The process that listens on the port of `host`, a base URL, its children, and the others of its process group.

    In that group is what started it, where it is the smaller part of a server: pytriton, for example, starts Triton and
    holds the models itself. A group that this process is in, too, is a script's, and does not count.

    Attributes:
        found: whether there is one on this machine that this user may look at.
    """

    def __init__(self, host: str) -> None:
        self._process = _listening(host)
        self.found = self._process is not None
        self._resident_peak = self._gpu_peak = 0

    def memory(self) -> VramStatus:
        """Resident memory, and GPU memory by NVML, of all of its processes together; peaks are those of the samples."""
        resident, gpu = self.sample()
        return VramStatus(
            device="unknown",
            resident_mb=_megabytes(resident),
            resident_peak_mb=_megabytes(None if resident is None else self._resident_peak),
            process_mb=_megabytes(gpu),
            process_peak_mb=_megabytes(None if gpu is None else self._gpu_peak),
        )

    def sample(self) -> tuple[int | None, int | None]:
        """Bytes of resident and of GPU memory now; None for what is not known."""
        if self._process is None:
            return None, None
        processes = self._all_processes(self._process)
        resident = 0
        for process in processes:
            with suppress(psutil.Error):
                resident += process.memory_info().rss
        gpu = _gpu_bytes({process.pid for process in processes})
        self._resident_peak = max(self._resident_peak, resident)
        self._gpu_peak = max(self._gpu_peak, gpu or 0)
        return resident or None, gpu

    @staticmethod
    def _all_processes(listening: psutil.Process) -> set[psutil.Process]:
        found = {listening}
        with suppress(psutil.Error):
            found.update(listening.children(recursive=True))
        with suppress(ProcessLookupError, PermissionError):
            group = os.getpgid(listening.pid)
            if group != os.getpgrp():
                found.update(each for each in psutil.process_iter() if _group(each.pid) == group)
        return found

    def reset_peaks(self) -> None:
        """Let the peaks begin anew."""
        self._resident_peak = self._gpu_peak = 0
        self.sample()


def _listening(host: str) -> psutil.Process | None:
    url = urlsplit(host)
    port = url.port or (443 if url.scheme == "https" else 80)
    if not _is_here(url.hostname or ""):
        return None
    with suppress(psutil.Error, PermissionError):
        pids = {
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid
        }
        if pids:  # workers share their parent's socket
            return psutil.Process(min(pids))
    return None


def _group(pid: int) -> int | None:
    with suppress(ProcessLookupError, PermissionError):
        return os.getpgid(pid)
    return None


def _is_here(name: str) -> bool:
    with suppress(OSError, ValueError):
        addresses = {info[4][0] for info in socket.getaddrinfo(name, None)}
        own = {each.address for cards in psutil.net_if_addrs().values() for each in cards}
        return any(ipaddress.ip_address(each).is_loopback or each in own for each in addresses)
    return False


def _gpu_bytes(pids: set[int]) -> int | None:
    """GPU memory of these processes on all GPUs; None without a GPU, or where NVML does not tell."""
    with suppress(pynvml.NVMLError), _nvml():
        used = [
            process.usedGpuMemory
            for index in range(pynvml.nvmlDeviceGetCount())
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
            if process.pid in pids and process.usedGpuMemory is not None
        ]
        return sum(used) if used else None
    return None


@contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _megabytes(size: int | None) -> float | None:
    return None if size is None else size / 1e6
