"""Every implementation that claims to be exact, by the public comparison, against a real server."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from detbench.__main__ import main
from detbench.datasets import fetch
from detbench.measure.server_process import ServerProcess

# One runs and the others wait, so that there are batches of these sizes; the larger ones are in tests/recipes.
SIZES = {1, 2}
IMAGES = sum(SIZES)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def photos(data_dir: Path) -> Path:
    """A folder of different pictures, cut out of the photographs of `sample`."""
    folder = data_dir / "pieces"
    folder.mkdir()
    sample = [Image.open(photo.path).convert("RGB") for photo in fetch("sample", data_dir).photos]
    for number in range(IMAGES):
        picture, cut = sample[number % len(sample)], 20 * (number // len(sample))
        picture.crop((cut, 0, picture.width, picture.height - cut)).save(folder / f"{number:02}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def server(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {
        "DETSERVER_DATA_DIR": str(data_dir),
        "DETSERVER_WEIGHTS_DOWNLOAD": "false",
        "DETSERVER_DEVICE": "cpu",
        "DETSERVER_PRELOAD": "none",
    }
    with ServerProcess(tmp_path_factory.mktemp("server") / "server.log", settings) as process:
        process.wait_ready()
        yield process


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("model_set", ["mixed", "uniform"])
def test_what_claims_to_be_exact_is_in_batches_too(
    model_set: str, server: ServerProcess, data_dir: Path, photos: Path, tmp_path: Path, capsys
):
    listed = httpx.get(f"{server.host}/implementations").json()
    names = [each["name"] for each in listed if each["exact"] and model_set in each["model_sets"]]
    names.remove("baseline")
    if model_set == "mixed":
        # Five minutes for three networks, which are compiled as the one of `uniform` is; on a CPU not in batches.
        names.remove("compiled")
    assert {"postprocess", "channels-last", "folded", "fastest"} <= {*names}
    common = ["--host", server.host, "--model-set", model_set, "--data-dir", data_dir, "--outputs-dir", tmp_path]
    common += ["--dataset", photos, "--max-images", IMAGES]
    assert _detbench("reference", *common) == 0
    figures = tmp_path / "figures.json"
    status = _detbench("compare", "--implementations", *names, *common, "--concurrency", 32, "--json", figures)
    assert status == 0, capsys.readouterr().out
    found = {each["implementation"]: each for each in json.loads(figures.read_text())}
    assert list(found) == names
    for name, each in found.items():
        assert each["gate"]["passed"], name
        assert each["overall"]["reference_detections"] >= 3 * IMAGES * 3, name
        assert each["overall"]["largest_box_difference_px"] < 0.05, name
        assert each["overall"]["largest_score_difference"] < 1e-3, name
    for name in {"postprocess", "channels-last", "folded", "vmap", "grouped"} & {*names}:
        assert {*map(int, found[name]["batch_sizes"])} == SIZES, name


def _detbench(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])
