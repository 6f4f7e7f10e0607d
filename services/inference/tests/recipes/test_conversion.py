"""Converted networks are made once, whole, and whatever happened to who began before."""

import os
from pathlib import Path

import pytest

from detserver.recipes.backends.conversion import make_once


def write(target: Path) -> None:
    (target / "network").write_text("converted")


def test_what_a_process_of_the_same_id_has_left_when_it_was_killed_is_in_nobodys_way(tmp_path: Path):
    folder = tmp_path / "networks" / "d0"
    (tmp_path / "networks" / f"d0.{os.getpid()}.partial").mkdir(parents=True)
    make_once(folder, "d0", write)
    assert (folder / "network").read_text() == "converted"
    assert folder.stat().st_mode & 0o777 == 0o755


def test_what_fails_leaves_nothing_and_is_made_by_the_next_one(tmp_path: Path):
    folder = tmp_path / "d0"

    def fails(target: Path) -> None:
        write(target)
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        make_once(folder, "d0", fails)
    assert list(tmp_path.iterdir()) == []
    make_once(folder, "d0", write)
    make_once(folder, "d0", fails)
    assert [path.name for path in folder.iterdir()] == ["network"]


def test_who_is_second_takes_what_the_first_has_made(tmp_path: Path):
    folder = tmp_path / "d0"

    def meanwhile(target: Path) -> None:
        write(target)
        make_once(folder, "d0", write)

    make_once(folder, "d0", meanwhile)
    assert [path.name for path in tmp_path.iterdir()] == ["d0"]
