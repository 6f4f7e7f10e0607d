"""A server that answers what it has answered before is found out, and one that does not is not accused."""

import io
import json
from collections.abc import Callable, Hashable
from pathlib import Path

import pytest
from photo_server import PhotoServer
from PIL import Image
from stub_server import entry

from detbench.api.client import ServerClient
from detbench.measure.cache_check import check_cache


def pixels(body: bytes) -> Hashable:
    return Image.open(io.BytesIO(body)).tobytes()


@pytest.mark.parametrize("key", [hash, pixels])
@pytest.mark.parametrize("keeps", [1, 1000])
def test_a_cache_is_found_however_much_it_keeps(keeps: int, key: Callable[[bytes], Hashable]):
    with PhotoServer(entry("x")) as server, ServerClient(server.host) as client:
        server.infer_s, server.keeps, server.key = 0.05, keeps, key
        for _ in range(2):  # the second time with what the first one has left
            found = check_cache(client, "x", "single")
            assert found.pairs >= 3
            assert found.low is not None
            assert found.low > 1.1


def test_an_image_costs_the_same_again_where_nothing_is_kept():
    with PhotoServer(entry("x")) as server, ServerClient(server.host) as client:
        server.infer_s = 0.05
        found = check_cache(client, "x", "single")
    assert found.low is not None
    assert found.low < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [0, 1000])
def test_a_cache_is_a_doubt_about_every_run_of_a_sweep(detbench, tmp_path: Path, keeps: int):
    with PhotoServer(entry("baseline"), entry("x")) as server:
        server.infer_s, server.keeps = 0.05, keeps
        load = ("--users", "1", "2", "--duration", "1", "--warmup", "1")
        sweep = ("run", "--host", server.host, "--implementations", "x", *load)
        assert detbench(*sweep, "--compare-outputs") == 0
    (run_dir,) = (tmp_path / "outputs").glob("*-single")
    found = json.loads((run_dir / "results.json").read_text())
    doubts = [warning for each in found["runs"] for warning in each["warnings"] if warning["code"] == "cached-answers"]
    assert [doubt["message"].startswith("an image that is sent again at once is answered ") for doubt in doubts] == [
        True
    ] * (2 if keeps else 0)
    assert ("cached-answers" in (run_dir / "report.html").read_text()) == bool(keeps)
    (info,) = found["implementations"]
    assert (info["cache"]["low"] > 1.1) == bool(keeps)
