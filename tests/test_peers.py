"""Servers of others do the work that detserver does: what comes out is the same."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detserver.preprocess import prepare

PEERS = Path(__file__).parents[1] / "services" / "bench" / "peers"


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch):
    """The module, without the imports that it makes lean for the servers' sake."""
    monkeypatch.setattr("detserver.lean_imports.install", lambda: None)
    spec = importlib.util.spec_from_file_location("work", PEERS / "work.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_effdets_own_transform_gives_what_detserver_prepares(work):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (427, 640, 3), dtype=np.uint8))
    prepared = prepare(image, work._SET.inputs)
    assert len(prepared.inputs) == 3
    for config, ours in prepared.inputs.items():
        assert torch.equal(torch.from_numpy(work.by_effdet(image, config)), ours.pixels)


def test_the_page_has_a_row_for_each_server_and_ratios_with_intervals(monkeypatch: pytest.MonkeyPatch, work):
    monkeypatch.syspath_prepend(str(PEERS))
    monkeypatch.setitem(sys.modules, "work", work)
    bench = importlib.import_module("bench")
    ours, theirs = (bench.Peer(name, "1.0", "effdet", [], {}, 0) for name in (bench.OURS, "Other"))
    rounds = {
        (peer, 8): [bench.Round(rps * factor, [1e3 / rps] * 1000, []) for factor in (1.0, 1.1, 0.9)]
        for peer, rps in ((ours, 200.0), (theirs, 100.0))
    }
    text = bench.page([ours, theirs], rounds, {"Machine": "a test"})
    assert "| detserver 1.0 | effdet | 8 | 200.0 | 5.0 | 5.0 | 0 |  |" in text
    assert "| Other 1.0 | effdet | 8 | 100.0 | 10.0 | 10.0 | 0 | 2× (2 to 2) |" in text
