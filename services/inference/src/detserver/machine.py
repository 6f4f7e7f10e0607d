"""What the machine and the software are: read once, reported by /health, kept in every report."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from detserver import __version__

_PACKAGES = ("torch", "torchvision", "effdet", "timm", "fastapi", "uvicorn", "numpy", "pillow")


@dataclass(frozen=True)
class Machine:
    """The device that the models run on and what runs them."""

    device: str
    device_name: str
    cpu_count: int
    torch_threads: int
    platform: str
    versions: dict[str, str]


def pick_device(name: str) -> torch.device:
    """The torch device called `name`; `auto` is the first GPU, or the CPU where there is none."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    return torch.device("cuda:0") if device == torch.device("cuda") else device


def describe(device: torch.device) -> Machine:
    """What `Machine` holds, of this process."""
    packages = {package: version(package) for package in _PACKAGES}
    versions = {"detserver": __version__, "python": platform.python_version(), **packages}
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(str(device), name, cores, torch.get_num_threads(), platform.platform(), versions)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
