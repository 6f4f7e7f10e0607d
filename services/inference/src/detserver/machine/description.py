"""What the machine and the software are: read once, reported by /health, kept in every report."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from detserver import __version__
from detserver.machine.cpus import usable_cpus

_PACKAGES = ("torch", "torchvision", "effdet", "timm", "fastapi", "uvicorn", "numpy", "pillow")


@dataclass(frozen=True)
class Machine:
    """The device that the models run on and what runs them; `cpu_count` is what this process may use."""

    device: str
    device_name: str
    cpu_count: int
    torch_threads: int
    platform: str
    versions: dict[str, str]


def describe(device: torch.device) -> Machine:
    """What `Machine` holds, of this process."""
    packages = {package: version(package) for package in _PACKAGES}
    versions = {"detserver": __version__, "python": platform.python_version(), **packages}
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return Machine(str(device), name, usable_cpus(), torch.get_num_threads(), platform.platform(), versions)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
