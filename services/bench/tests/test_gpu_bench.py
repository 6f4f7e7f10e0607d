"""The script of a whole session, on this machine: what it leaves, and that it ends in time."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "gpu-bench"


@pytest.fixture
def session(settings: dict[str, str], data_dir: Path, tmp_path: Path):
    """Runs the script for `invalid` of the small model set; returns its exit status and its folder."""

    def run(**variables: str) -> tuple[int, Path]:
        environment = os.environ | settings | {"BENCHMARK_DATA_DIR": str(data_dir), "PYTHON": sys.executable}
        small = {"SETS": "single", "IMPLEMENTATIONS": "invalid", "MAX_IMAGES": "1", "USERS": "1", "DURATION": "1"}
        out = {"OUT": str(tmp_path / "session"), "TMPDIR": str(tmp_path)}
        ended = subprocess.run([SCRIPT], env=environment | small | out | variables, timeout=240)
        return ended.returncode, tmp_path / "session"

    return run


@pytest.mark.slow
def test_a_session_leaves_its_tables_and_an_archive_per_step(session, tmp_path: Path):
    status, out = session(STEPS="first")
    assert status == 0
    assert {path.name for path in out.iterdir()} - {"gpu.csv"} == {"summary.md", "facts.txt", "first-single.tar.gz"}
    summary = (out / "summary.md").read_text()
    assert "## first of single: ok" in summary
    (row,) = [line for line in summary.splitlines() if line.startswith("| invalid | 1 user | ")]
    assert "| failed | 0 of " in row  # compared with the reference, alone and under load
    with tarfile.open(out / "first-single.tar.gz") as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"results.json", "report.html", "server.log", "server-invalid.log"} <= names
    assert list(tmp_path.glob("tmp*")) == []


@pytest.mark.slow
def test_a_step_without_time_is_cut_off_and_the_next_one_has_its_turn(session):
    status, out = session(STEPS="first ablation", LIMIT_S="4")
    assert status == 1
    summary = (out / "summary.md").read_text()
    assert "## first of single: cut off" in summary
    assert "## ablation of single: cut off" in summary


@pytest.mark.slow
def test_without_compilation_that_step_is_left_out_and_each_says_its_share(session, capfd):
    session(STEPS="first ablation compiled", COMPILE="false", LIMIT_S="4")
    said = capfd.readouterr().out
    shares = re.findall(r"^=== (\w+) of single: \S+ s at most, (\d+) % of what is left$", said, re.MULTILINE)
    assert shares == [("first", "27"), ("ablation", "100")]


def test_what_the_gpu_did_is_told_of_each_step(tmp_path: Path):
    tool = tmp_path / "bin" / "nvidia-smi"  # a thin stand-in of the driver's tool
    tool.parent.mkdir()
    tool.write_text(
        '#!/bin/sh\n[ "$1" = -q ] && exit\nwhile :; do\n'
        "echo '2026/01/01 00:00:00.000, 1980, 2619, 350.5, 60, 0x0000000000000004'\n"
        "echo '2026/01/01 00:00:00.500, 1755, 2619, 699.0, 61, 0x0000000000000000'\nsleep 0.1\ndone\n"
    )
    tool.chmod(0o755)
    environment = os.environ | {
        **{"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}", "PYTHON": "false", "LIMIT_S": "2"},
        **{"STEPS": "first", "SETS": "single", "OUT": str(tmp_path / "out")},
    }
    ended = subprocess.run([sys.executable, SCRIPT], env=environment, timeout=60, capture_output=True)
    assert ended.returncode == 1
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "SM 1868 (1755-1980) MHz, memory 2619 (2619-2619) MHz, 525 (350-699) W" in summary
    assert "throttled 50 % (0x0000000000000004)" in summary
