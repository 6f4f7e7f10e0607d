"""How many kernels a call launches, and how long it takes."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_NOT_KERNELS = ("Memcpy", "Memset")


def count_kernels(call: Callable[[], object], device: torch.device) -> int:
    """Kernels that `call` launches, counted by torch's profiler after one call without it.

    On a GPU: kernels, those of a CUDA graph among them, copies not. On a CPU: torch's operators that call no other one;
    what a library does inside one of them, or OpenVINO by itself, is not seen.
    """
    call()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = profiler.events()
    if on_gpu:
        return sum(e.device_type == DeviceType.CUDA and not e.name.startswith(_NOT_KERNELS) for e in events)
    return sum(not e.cpu_children and "::" in e.name for e in events)


def median_seconds(call: Callable[[], object], at_least: int = 5, enough_s: float = 1.0) -> float:
    """Median time of `call`, which is to return when its work is done, after one call that does not count.

    Args:
        call: what to time.
        at_least: calls that count.
        enough_s: seconds after which no more calls are made, if there were enough of them.
    """
    call()
    times: list[float] = []
    while len(times) < at_least or sum(times) < enough_s:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)
