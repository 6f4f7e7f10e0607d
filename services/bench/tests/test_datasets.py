"""Named datasets, from a local HTTP server, and what is no dataset."""

import json
from pathlib import Path

import pytest
from file_server import FileServer, picture, zipped

from detbench.__main__ import main
from detbench.datasets import NAMES, SOURCES, fetch, open_dataset
from detbench.datasets.coco_val2017 import CocoVal2017
from detbench.datasets.roboflow_aquarium import URL_VARIABLE
from detbench.errors import DatasetError


@pytest.fixture
def coco(files: FileServer) -> CocoVal2017:
    boxes = json.dumps({"images": [], "annotations": [], "categories": []}).encode()
    images = zipped({f"val2017/{number:012}.jpg": picture() for number in (3, 1, 2)})
    annotations = zipped({"annotations/instances_val2017.json": boxes, "annotations/captions_val2017.json": b"{}"})
    return CocoVal2017(files.remote("val2017.zip", images), files.remote("annotations.zip", annotations))


def test_a_download_becomes_a_dataset_with_its_annotations(files: FileServer, coco: CocoVal2017, tmp_path: Path):
    dataset = fetch(coco, tmp_path)
    assert [photo.name for photo in dataset.photos] == [f"{number:012}.jpg" for number in (1, 2, 3)]
    assert dataset.annotations == tmp_path / "coco_val2017" / "instances.json"
    assert list((tmp_path / "downloads").iterdir()) == []
    assert open_dataset("coco_val2017", tmp_path, 2).photos == dataset.photos[:2]


def test_a_second_call_asks_nothing(files: FileServer, coco: CocoVal2017, tmp_path: Path):
    fetch(coco, tmp_path)
    files.asked.clear()
    fetch(coco, tmp_path)
    assert files.asked == []


def test_a_mirror_can_be_named(files: FileServer, coco: CocoVal2017, tmp_path: Path, monkeypatch):
    files.files["/mirror.zip"] = files.files.pop("/val2017.zip")
    monkeypatch.setenv("DETBENCH_COCO_IMAGES_URL", f"{files.url}/mirror.zip")
    assert len(fetch(coco, tmp_path).photos) == 3


def test_empty_addresses_mean_the_usual_ones(coco: CocoVal2017, tmp_path: Path, monkeypatch):
    """`docker compose run --rm datasets coco_val2017` with nothing in .env."""
    monkeypatch.setitem(SOURCES, "coco_val2017", coco)
    monkeypatch.setenv("DETBENCH_COCO_IMAGES_URL", "")
    monkeypatch.setenv("DETBENCH_COCO_ANNOTATIONS_URL", "")
    assert main(["datasets", "coco_val2017", "--data-dir", str(tmp_path)]) == 0
    assert len(open_dataset("coco_val2017", tmp_path).photos) == 3


def test_the_aquarium_is_the_test_split_of_the_users_own_export(files: FileServer, tmp_path: Path, monkeypatch):
    with pytest.raises(DatasetError, match=URL_VARIABLE):
        fetch("roboflow_aquarium", tmp_path)
    boxes = {"images": [{"id": 1, "file_name": "fish.jpg"}], "annotations": [], "categories": []}
    members = {"test/_annotations.coco.json": json.dumps(boxes).encode(), "test/fish.jpg": picture()}
    files.remote("export.zip", zipped(members | {"train/other.jpg": picture()}))
    monkeypatch.setenv(URL_VARIABLE, f"{files.url}/export.zip")
    dataset = fetch("roboflow_aquarium", tmp_path)
    assert [photo.name for photo in dataset.photos] == ["fish.jpg"]
    assert dataset.annotations is not None


def test_the_sample_needs_no_network(tmp_path: Path):
    dataset = fetch("sample", tmp_path)
    assert [photo.name for photo in dataset.photos] == ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
    assert {photo.content_type for photo in dataset.photos} == {"image/png", "image/jpeg"}


def test_what_is_no_dataset_is_told_with_the_remedy(tmp_path: Path):
    with pytest.raises(DatasetError, match=", ".join(NAMES)):
        open_dataset("nothing", tmp_path)
    with pytest.raises(DatasetError, match="detbench datasets coco_val2017"):
        open_dataset("coco_val2017", tmp_path)
    with pytest.raises(DatasetError, match="no image"):
        open_dataset(str(tmp_path), tmp_path)
    with pytest.raises(DatasetError, match="1 or more"):
        open_dataset(str(tmp_path), tmp_path, 0)
