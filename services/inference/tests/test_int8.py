"""INT8 by NNCF: calibrated with the photographs that there are, wrong by a bounded amount, quantized once."""

import shutil
from pathlib import Path

import pytest
from small_detector import CPU, SMALL, raw_and_detections

from detserver.errors import CannotRun
from detserver.models.weights import WeightsStore
from detserver.recipes.backends import openvino_network, quantization
from detserver.recipes.backends.quantization import calibration_photos, identity, unavailable_reason

pytestmark = pytest.mark.xdist_group("small_detector")  # one process converts for all

needs_nncf = pytest.mark.skipif(unavailable_reason() is not None, reason="the extra openvino-int8 is not installed")


@pytest.fixture
def own(store: WeightsStore, tmp_path: Path) -> WeightsStore:
    """A store with a data folder of its own, which has the weights and the float network already."""
    openvino_network.prepare(SMALL, store, "fp32")
    for name in ("random-weights", "openvino"):
        shutil.copytree(store.cache_dir / name, tmp_path / "data" / "cache" / name)
    return WeightsStore(tmp_path / "data" / "weights", tmp_path / "data" / "cache", store._seed, allow_download=False)


@needs_nncf
@pytest.mark.slow
def test_its_error_is_there_and_bounded(
    own: WeightsStore, photos: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    images = own.cache_dir.parent / "sample" / "images"
    images.mkdir(parents=True)
    for photo in photos:
        shutil.copy(photo, images)
    (images / "broken.jpg").write_bytes(photos[-1].read_bytes()[:100])
    openvino_network.prepare(SMALL, own, "int8")
    assert "broken.jpg" in caplog.text
    monkeypatch.setattr(quantization, "quantized", lambda *_: pytest.fail("quantized again"))
    network = openvino_network.network(SMALL, own, "int8", CPU)
    assert network.precision == "int8"
    assert network.remark == "calibrated with 5 photographs (sample 5)"
    eager = own.model(SMALL)
    for photo in photos:
        expected, wanted = raw_and_detections(eager, photo)
        found, got = raw_and_detections(network, photo)
        for level, right in zip(found, expected, strict=True):
            relative = ((level - right).pow(2).mean() / right.pow(2).mean()).sqrt()
            assert 1e-4 < relative < 0.5  # zeros, or another network's answers, are wrong by 1 or more
        assert abs(len(got) - len(wanted)) <= len(wanted)


@pytest.mark.slow
@needs_nncf
def test_without_photographs_it_says_how_to_get_some(own: WeightsStore):
    with pytest.raises(CannotRun, match="run `detbench datasets sample`"):
        openvino_network.prepare(SMALL, own, "int8")


def touch(file: Path, content: bytes = b"") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def test_it_takes_images_of_datasets_and_nothing_else(tmp_path: Path):
    for name in ("sample/images/b.JPG", "mine/images/a.png"):
        touch(tmp_path / name)
    for name in ("sample/images/.b.jpg", ".sample.half/images/c.jpg", "sample/d.jpg", "sample/images/LICENCE.txt"):
        touch(tmp_path / name)
    photos = calibration_photos(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in photos.files] == ["mine/images/a.png", "sample/images/b.JPG"]
    assert str(photos) == "2 photographs (mine 1, sample 1)"


def test_of_many_it_takes_a_hundred_evenly(tmp_path: Path):
    for number in range(250):
        touch(tmp_path / "coco" / "images" / f"{number:03}.jpg")
    photos = calibration_photos(tmp_path)
    assert [int(file.stem) for file in photos.files][:3] == [0, 2, 5]
    assert len(photos.files) == 100
    assert str(photos) == "100 of 250 photographs (coco 100)"


@needs_nncf
def test_other_photographs_are_another_network(tmp_path: Path):
    touch(tmp_path / "sample" / "images" / "a.jpg", b"1")
    first = identity(calibration_photos(tmp_path))
    assert identity(calibration_photos(tmp_path)) == first
    touch(tmp_path / "sample" / "images" / "a.jpg", b"12")
    assert identity(calibration_photos(tmp_path)) != first


def test_what_is_not_installed_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    assert unavailable_reason() == "NNCF is not installed: pip install 'detserver[openvino-int8]'"
