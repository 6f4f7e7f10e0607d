"""What the machine that measures gives and takes: shares of its CPU time, by the kernel's counters.

On a virtual machine the host may run others on the cores that the guest believes to have: stolen time. A figure that
was measured meanwhile is of the host's other guests, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_USER, _NICE, _SYSTEM, _IDLE, _IOWAIT, _IRQ, _SOFTIRQ, _STEAL = range(8)


@dataclass(frozen=True)
class CpuShares:
    """Shares of the CPU time of all cores, from 0 to 1.

    Attributes:
        busy: spent by processes and the kernel of this machine.
        steal: wanted by them, and spent by the host on something else; 0 on a machine that is not virtual.
    """

    busy: float
    steal: float


class CpuWatch:
    """Measures what share of the CPU time went where, from its making on.

    Args:
        stat: `/proc/stat` of proc(5), whose first line counts ticks since the machine was started; a test's own file.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._read: Callable[[], list[int] | None] = lambda: _ticks(stat)
        self._start = self._read()

    def shares(self) -> CpuShares | None:
        """Shares so far; None where the kernel has no such counters (macOS), or no tick has passed."""
        end = self._read()
        if self._start is None or end is None:
            return None
        passed = [max(0, after - before) for before, after in zip(self._start, end, strict=True)]
        whole = sum(passed)
        if whole == 0:
            return None
        busy = whole - passed[_IDLE] - passed[_IOWAIT] - passed[_STEAL]
        return CpuShares(busy / whole, passed[_STEAL] / whole)


def _ticks(stat: Path) -> list[int] | None:
    """User, nice, system, idle, iowait, irq, softirq and steal; guests' time is in the first two already."""
    try:
        name, *counts = stat.read_text().split("\n", 1)[0].split()
    except (OSError, ValueError):
        return None
    return [int(count) for count in counts[:8]] if name == "cpu" and len(counts) >= 8 else None


def available_mb() -> float | None:
    """Memory that processes can still take without swapping, MB (10^6 bytes); None where the kernel does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 / 1e6 if found else None
