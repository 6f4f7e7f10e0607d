"""The photo of a report, with the answers drawn on it."""

from pathlib import Path

import numpy as np
import pytest
from made_reports import MODELS, Page, reported, sweep
from PIL import ExifTags, Image
from test_folders import TESTDATA

from detbench.api.schemas import ModelDetections
from detbench.quality.outputs import ImageOutput, write_outputs
from detbench.report.photo import save_photo


def test_the_photo_shows_both_answers(tmp_path: Path):
    Image.effect_noise((640, 480), 60).convert("RGB").save(tmp_path / "photo.jpg")
    found = [
        ModelDetections(model_name=name, boxes=[(10, 10, 200, 100), (90, 5, 80, 4)], scores=[0.9, 0.4], labels=[1, 2])
        for name in MODELS
    ]
    for name in ("reference", "baseline", "invalid"):
        outputs = [ImageOutput(image="a.jpg", sha256="0", detections=found)]
        write_outputs(tmp_path / "detections" / f"{name}.json", outputs)
    page = Page(reported(tmp_path, sweep()))
    assert page.tags.count("img") == 2
    assert "reference | invalid" in page.text


def mean_of_saved(image: Image.Image, source: Path, **options: object) -> tuple[tuple[int, int], np.ndarray]:
    """Size of the report's photo, and the mean of its left and right half."""
    image.save(source, **options)
    save_photo(source, source.with_name("photo.jpg"))
    with Image.open(source.with_name("photo.jpg")) as saved:
        pixels = np.asarray(saved)
    half = pixels.shape[1] // 2
    return saved.size, np.array([pixels[:, :half].mean(), pixels[:, half:].mean()])


def test_a_grey_photo_of_16_bits_is_its_upper_byte(tmp_path: Path):
    grey = np.repeat([[64 * 257] * 16 + [192 * 257] * 16], 32, axis=0).astype(np.uint16)
    size, means = mean_of_saved(Image.fromarray(grey), tmp_path / "grey.png")
    assert size == (32, 32)
    assert means == pytest.approx([64, 192], abs=2)


@pytest.mark.parametrize(("orientation", "size", "means"), [(1, (32, 16), [0, 255]), (3, (32, 16), [255, 0])])
def test_the_photo_is_upright(orientation: int, size: tuple[int, int], means: list[float], tmp_path: Path):
    pixels = np.repeat([[0] * 16 + [255] * 16], 16, axis=0).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    assert mean_of_saved(Image.fromarray(pixels), tmp_path / "a.png", exif=exif)[0] == size
    assert mean_of_saved(Image.fromarray(pixels), tmp_path / "a.png", exif=exif)[1] == pytest.approx(means, abs=2)
    exif[ExifTags.Base.Orientation] = 6
    assert mean_of_saved(Image.fromarray(pixels), tmp_path / "a.jpg", exif=exif)[0] == (16, 32)


@pytest.mark.parametrize("exif", [b"", b"garbage", b"Exif\0\0garbage!", b"Exif\0\0MM\0*\xff\xff\xff\xff"])
def test_a_photo_with_odd_metadata_is_shown(exif: bytes, tmp_path: Path):
    white = Image.new("RGB", (32, 16), "white")
    assert mean_of_saved(white, tmp_path / "a.jpg", exif=exif)[0] == (32, 16)
    assert mean_of_saved(white, tmp_path / "a.png", exif=exif)[0] == (32, 16)


def test_a_photo_that_cannot_be_shown_costs_a_warning_and_no_report(tmp_path: Path, caplog):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    save_photo(tmp_path / "cut.jpg", tmp_path / "photo.jpg")
    assert not (tmp_path / "photo.jpg").exists()
    assert "the report is without a photo: " in caplog.text
    assert Page(reported(tmp_path, sweep())).tags.count("img") == 0


def test_no_odd_picture_ends_a_report_and_none_is_white(tmp_path: Path):
    odd = TESTDATA / "odd"
    if not odd.is_dir():
        pytest.skip(f"no odd pictures in {odd}")
    for picture in (path for path in odd.iterdir() if path.is_file()):
        save_photo(picture, tmp_path / "photo.jpg")
    for name in ("grey16.png", "exif6_make_as_rational.jpg", "png_exif_garbage.png"):
        save_photo(odd / name, tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert 100 < np.asarray(saved).mean() < 140
            assert saved.size == ((160, 240) if name.startswith("exif6") else (240, 160))
