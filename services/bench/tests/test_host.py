"""Shares of CPU time, from counters of the test's own and from the machine's."""

import time
from pathlib import Path

import pytest

from detbench.host import CpuShares, CpuWatch

START = "cpu  1000 10 500 8000 100 5 5 50 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"


@pytest.mark.parametrize(
    ("end", "shares"),
    [
        ("cpu  1050 10 510 8030 100 5 5 60 0 0\n", CpuShares(busy=0.6, steal=0.1)),
        ("cpu  1000 10 500 8090 110 5 5 50 0 0\n", CpuShares(busy=0.0, steal=0.0)),
        # Kernels let iowait fall (proc(5)).
        ("cpu  1050 10 500 8050 90 5 5 50 0 0\n", CpuShares(busy=0.5, steal=0.0)),
        (START, None),
        ("cpu  1 2 3 4\n", None),
        ("", None),
    ],
)
def test_what_was_stolen_is_no_part_of_what_was_busy(tmp_path: Path, end: str, shares: CpuShares | None):
    stat = tmp_path / "stat"
    stat.write_text(START)
    watch = CpuWatch(stat)
    stat.write_text(end)
    assert watch.shares() == shares


def test_without_counters_there_are_no_shares(tmp_path: Path):
    assert CpuWatch(tmp_path / "none").shares() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the kernel has no /proc/stat")
def test_the_machines_own_shares_are_shares():
    watch = CpuWatch()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    found = watch.shares()
    assert found is not None
    assert 0 < found.busy <= 1
    assert 0 <= found.steal < 1
