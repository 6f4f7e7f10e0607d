"""Counting what a call launches, by torch's profiler."""

from collections.abc import Callable

import torch

_NOT_KERNELS = ("Memcpy", "Memset")


def count_kernels(call: Callable[[], object], device: torch.device) -> int:
    """Kernels that `call` launches, counted by torch's profiler after one call without it.

    On a GPU: kernels, those of a CUDA graph among them, copies not. On a CPU: torch's operators that call no other one;
    what a library does inside one of them, or OpenVINO by itself, is not seen.
    """
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile  # with torch's compiler, which no start-up waits for

    call()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = profiler.events()
    if on_gpu:
        return sum(e.device_type == DeviceType.CUDA and not e.name.startswith(_NOT_KERNELS) for e in events)
    return sum(not e.cpu_children and "::" in e.name for e in events)
