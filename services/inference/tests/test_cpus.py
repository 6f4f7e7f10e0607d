"""Quotas of control groups, in made-up trees of /proc and /sys."""

import os
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from detserver.http import server
from detserver.http.routes import create_app
from detserver.machine import description as machine
from detserver.machine.cpus import usable_cpus
from detserver.settings import Settings

V1 = "32 31 0:29 {part} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V2 = "41 31 0:38 {part} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
BOUND = 64


@pytest.fixture(autouse=True)
def a_large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(BOUND)))


def tree(root: Path, groups: str, mounts: str, **files: str) -> Path:
    """A made-up file system; `files` are contents by path below /sys/fs/cgroup, `__` for a slash."""
    contents = {"proc/self/cgroup": groups, "proc/self/mountinfo": f"23 1 0:21 / / rw - ext4 /dev/vda rw\n{mounts}\n"}
    for path, content in [*contents.items(), *files.items()]:
        file = root / (path if path in contents else f"sys/fs/cgroup/{path}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.mark.parametrize(
    ("quota", "usable"),
    [
        ("max 100000", BOUND),
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("399999 100000", 3),
        ("50000 100000", 1),
        ("25000 50000", 1),
        ("99900000 100000", BOUND),
    ],
)
def test_a_quota_of_version_2_counts_in_whole_processors(tmp_path: Path, quota: str, usable: int):
    root = tree(tmp_path, "0::/\n", V2.format(part="/"), **{"cpu.max": f"{quota}\n"})
    assert usable_cpus(root) == usable


@pytest.mark.parametrize(("quota", "usable"), [("-1", BOUND), ("300000", 3), ("150000", 1), ("1000", 1)])
def test_a_quota_of_version_1_counts_too(tmp_path: Path, quota: str, usable: int):
    # As in a container: the group has its host's path, and only what is below it is mounted.
    groups = "11:memory:/docker/abc\n5:cpu,cpuacct:/docker/abc\n0::/docker/abc\n"
    folder = "cpu,cpuacct"
    files = {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    assert usable_cpus(tree(tmp_path, groups, V1.format(part="/docker/abc"), **files)) == usable


@pytest.mark.parametrize(
    ("quotas", "usable"),
    [
        (("max 100000", "400000 100000", "800000 100000"), 4),
        (("max 100000", "max 100000", "300000 100000"), 3),
        (("500000 100000", "max 100000", "max 100000"), 5),
        (("max 100000", "max 100000", "max 100000"), BOUND),
    ],
)
def test_of_groups_within_each_other_the_smallest_quota_counts(tmp_path: Path, quotas: tuple[str, ...], usable: int):
    folders = ("", "kubepods.slice/", "kubepods.slice/pod.scope/")
    files = {f"{folder}cpu.max": quota for folder, quota in zip(folders, quotas, strict=True)}
    root = tree(tmp_path, "0::/kubepods.slice/pod.scope\n", V2.format(part="/"), **files)
    assert usable_cpus(root) == usable


def test_a_group_outside_of_what_is_mounted_is_taken_for_its_root(tmp_path: Path):
    root = tree(tmp_path, "0::/../other\n", V2.format(part="/"), **{"cpu.max": "200000 100000\n"})
    assert usable_cpus(root) == 2


def test_without_control_groups_it_is_what_the_process_is_bound_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert usable_cpus(tmp_path) == BOUND
    assert usable_cpus(tree(tmp_path, "5:cpu:/\n0::/\n", V1.format(part="/"))) == BOUND
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    root = tree(tmp_path / "quota", "0::/\n", V2.format(part="/"), **{"cpu.max": "800000 100000\n"})
    assert usable_cpus(root) == 2


@pytest.mark.parametrize(("settings", "threads"), [({}, (1, 1)), ({"torch_threads": 2, "decode_threads": 3}, (2, 3))])
def test_threads_go_by_the_quota_unless_they_are_set(monkeypatch: pytest.MonkeyPatch, settings: dict, threads: tuple):
    for module in (machine, server):
        monkeypatch.setattr(module, "usable_cpus", lambda: 1)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        health = TestClient(create_app(Settings(device="cpu", preload=[], **settings))).get("/health").json()
        assert health["cpu_count"] == 1
        assert (health["torch_threads"], health["settings"]["decode_threads"]) == threads
        assert torch.get_num_threads() == threads[0]
    finally:
        torch.set_num_threads(before)
