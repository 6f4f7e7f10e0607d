"""How many processors this process may use: of those it is bound to, what the quotas of its control groups leave."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(root: Path = Path("/")) -> int:
    """Whole processors that this process may keep busy, at least 1.

    Parts are rounded down: two threads on 1.5 processors are stopped in every period, both of them, and wait for each
    other.

    Args:
        root: where `proc` and `sys` are.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *(int(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Processors of each control group from this process's up to the topmost that can be seen, where one is limited.

    See cgroups(7) and proc_pid_mountinfo(5). Version 2 has one hierarchy, and a line "0::PATH" in /proc/self/cgroup;
    version 1 has one for each set of controllers. What is mounted may be a part of a hierarchy only, as in a container.
    """
    groups: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        groups[controllers] = path
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        part, mount_point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind == "cgroup2":
            own = [path for names, path in groups.items() if not names]
        elif kind == "cgroup" and "cpu" in options.split(","):
            own = [path for names, path in groups.items() if "cpu" in names.split(",")]
        else:
            continue
        for folder in (each for path in own for each in _folders(root / mount_point.lstrip("/"), part, path)):
            quota = _quota_v2(folder) if kind == "cgroup2" else _quota_v1(folder)
            if quota is not None:
                yield quota


def _folders(mount_point: Path, part: str, path: str) -> Iterator[Path]:
    """Folders of a control group and of those above it, of which `part` and what is below is mounted."""
    group = PurePosixPath(path)
    seen = group.is_relative_to(part) and ".." not in group.parts  # else it is the root of what is mounted, at best
    below = group.relative_to(part) if seen else PurePosixPath()
    for each in (below, *below.parents):
        yield mount_point / each


def _quota_v2(folder: Path) -> float | None:
    fields = " ".join(_lines(folder / "cpu.max")).split()
    return int(fields[0]) / int(fields[1]) if len(fields) == 2 and fields[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_lines(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _lines(file: Path) -> list[str]:
    """Lines of a file; none where there is no such file, or it may not be read."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
