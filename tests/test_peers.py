"""Servers of others do the work that detserver does: what comes out is the same."""

import importlib.util
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from detbench.api.protocol import Native
from detbench.results.quality import Audit, Gate
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


def test_an_answer_is_the_same_in_either_form(work):
    found = work._CONSTANT
    tensors = work.as_tensors(found)
    assert [tensors["model"].tolist(), tensors["boxes"].shape] == [[0, 1, 2], (3, 4)]
    assert [each["scores"] for each in work.as_json(found)["detections"]] == [[score] for score in tensors["scores"]]


def test_a_server_runs_while_it_is_awake_and_not_after_it(monkeypatch: pytest.MonkeyPatch, work):
    monkeypatch.syspath_prepend(str(PEERS))
    monkeypatch.setitem(sys.modules, "work", work)
    bench = importlib.import_module("bench")
    child = "import sys; print(flush=True); sys.stdin.read()"
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", starter], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        server = psutil.Process(process.pid)
        both = [server, *server.children()]
        try:
            with bench.awake(server):
                assert psutil.STATUS_STOPPED not in {each.status() for each in both}
            assert [each.status() for each in both] == [psutil.STATUS_STOPPED] * 2
            with bench.awake(server):
                process.communicate(timeout=60)
        finally:
            bench.each_of(server, psutil.Process.kill)
    bench.each_of(server, psutil.Process.resume)  # of what has ended: nothing


def test_the_page_has_a_row_for_each_server_and_ratios_with_intervals(monkeypatch: pytest.MonkeyPatch, work):
    monkeypatch.syspath_prepend(str(PEERS))
    monkeypatch.setitem(sys.modules, "work", work)
    bench = importlib.import_module("bench")
    ours, theirs = (bench.Peer(name, "1.0", "effdet", [], {}, 0, Native()) for name in (bench.OURS, "Other"))
    rounds = {
        (peer, 8): [
            bench.Answered(window_s=10.0, latencies_ms=[1e3 / rps] * round(10 * rps * factor), failed=[])
            for factor in (1.0, 1.1, 0.9)
        ]
        for peer, rps in ((ours, 200.0), (theirs, 100.0))
    }
    wrong = Audit(
        answers=9,
        audited=9,
        distinct=1,
        right=8,
        reasons=["a.jpg: moved"],
        gate=Gate(passed=False, reasons=["moved"]),
        tolerance=None,
    )
    parts = [
        bench.Part("invalid", [ours, theirs], rounds, {}),
        bench.Part("baseline", [ours, theirs], rounds, {ours: wrong.model_copy(update={"right": 9}), theirs: wrong}),
    ]
    text = bench.page(parts, {"Machine": "a test"}, Namespace(users=[8]))
    assert "| detserver 1.0 | effdet | 8 | 200 | 5.0 | 5.0 | 0 |  |" in text
    assert "| Other 1.0 | effdet | 8 | 100 | 10.0 | 10.0 | 0 | 2× (2 to 2) |" in text
    assert "| Other 1.0 | effdet | 8 | 100 | 10.0 | 10.0 | 0 | 8 of 9 | 2× (2 to 2) |" in text
    assert "Other: a.jpg: moved" in text
