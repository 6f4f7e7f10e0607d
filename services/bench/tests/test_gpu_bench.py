"""The script of a whole session, on this machine: what it leaves, and that it ends in time."""

import os
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
    status, out = session(STEPS="parity served")
    assert status == 0
    assert {path.name for path in out.iterdir()} == {
        *("summary.md", "facts.txt", "parity-single.tar.gz", "served-single.tar.gz"),
    }
    summary = (out / "summary.md").read_text()
    assert "## parity of single: ok" in summary
    assert "4 at a time (largest batch: invalid 1)" in summary
    assert "## served of single: ok" in summary
    (row,) = [line for line in summary.splitlines() if line.startswith("| invalid | 1 | ok |")]
    assert row.endswith("| failed |")  # compared with the reference
    with tarfile.open(out / "parity-single.tar.gz") as archive:
        assert {Path(name).name for name in archive.getnames()} == {
            *("parity-single", "server.log", "concurrency-1.json", "concurrency-4.json"),
        }
    with tarfile.open(out / "served-single.tar.gz") as archive:
        assert any(name.endswith("results.json") for name in archive.getnames())
    assert list(tmp_path.glob("tmp.*")) == []


def test_a_step_without_time_is_cut_off_and_the_next_one_has_its_turn(session):
    status, out = session(STEPS="served ablation", LIMIT_S="4")
    assert status == 1
    summary = (out / "summary.md").read_text()
    assert "## served of single: cut off" in summary
    assert "## ablation of single: cut off" in summary
