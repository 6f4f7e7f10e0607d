"""The process that counts the kernels of a request: `python -m detserver.http.counting IMPLEMENTATION MODEL_SET`."""

import json
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from detserver import lean_imports

if TYPE_CHECKING:
    import torch

_NOT_KERNELS = ("Memcpy", "Memset")


def main(implementation: str, model_set: str) -> int:
    """Count in this process, print the result as a line of JSON, and return the exit status.

    The server's settings are a JSON object on standard input.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    lean_imports.install()
    from detserver.engine.work import failures
    from detserver.errors import DetserverError
    from detserver.http.server import Server
    from detserver.machine.device import use_ieee_float32
    from detserver.settings import Settings

    try:
        server = Server(Settings(**json.load(sys.stdin)))
        use_ieee_float32()
        built = server.registry.get(implementation)(server.zoo.model_set(model_set), server.weights, server.device)
        with failures((implementation, model_set)):
            built.prepare()
            built.load()
            image = built.example()
            count = count_kernels(lambda: built.predict_batch([image]), server.device)
    except DetserverError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(json.dumps({"kernels_per_request": count}) + "\n")
    return 0


def count_kernels(call: Callable[[], object], device: "torch.device") -> int:
    """Kernels that `call` launches, counted by torch's profiler after one call without it.

    On a GPU: kernels, those of a CUDA graph among them, copies not. On a CPU: torch's operators that call no other one;
    what a library does inside one of them, or OpenVINO by itself, is not seen.
    """
    import torch
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

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


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
