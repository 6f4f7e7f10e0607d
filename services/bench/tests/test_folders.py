"""Any folder of images as a dataset: exports of other tools, and pictures that are none."""

import json
import os
from pathlib import Path

import pytest
from file_server import picture
from PIL import Image

from detbench.datasets import open_dataset
from detbench.errors import DatasetError

TESTDATA = Path(__file__).parents[3].parent / "shared" / "testdata"


def test_any_folder_is_a_dataset(tmp_path: Path):
    for name in ("b.jpg", "a.JPG", "d.jfif", "notes.txt"):
        (tmp_path / name).write_bytes(picture())
    dataset = open_dataset(str(tmp_path), Path("nowhere"))
    assert [photo.name for photo in dataset.photos] == ["a.JPG", "b.jpg", "d.jfif"]
    assert dataset.annotations is None


def laid_out(folder: Path, *paths: str) -> None:
    """Pictures, and annotation files that list the pictures of the folder that they are of: `FILE = PICTURE …`."""
    for path in paths:
        name, *listed = path.split()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        images = [{"id": number, "file_name": each} for number, each in enumerate(listed, 1)]
        boxes = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "fish"}]}
        (folder / name).write_bytes(json.dumps(boxes).encode() if name.endswith(".json") else picture())


LAYOUTS = {
    "ours": (("images/a.jpg", "instances.json a.jpg"), "images/a.jpg", "instances.json"),
    "COCO": (
        (
            *("val2017/v.jpg", "train2017/t.jpg", "annotations/instances_train2017.json t.jpg"),
            *("annotations/instances_val2017.json v.jpg", "annotations/captions_val2017.json v.jpg"),
        ),
        "val2017/v.jpg",
        "annotations/instances_val2017.json",
    ),
    "COCO in images": (
        ("images/val2017/v.jpg", "images/train2017/t.jpg", "annotations/instances_val2017.json v.jpg"),
        "images/val2017/v.jpg",
        "annotations/instances_val2017.json",
    ),
    "Roboflow": (
        (
            *("train/t.jpg", "train/_annotations.coco.json t.jpg", "valid/v.jpg", "valid/_annotations.coco.json v.jpg"),
            *("test/s.jpg", "test/_annotations.coco.json s.jpg", "README.roboflow.txt"),
        ),
        "valid/v.jpg",
        "valid/_annotations.coco.json",
    ),
    "Roboflow without validation": (("train/t.jpg", "test/s.jpg"), "test/s.jpg", None),
    "Roboflow for YOLO": (
        ("train/images/t.jpg", "valid/images/v.jpg"),
        "valid/images/v.jpg",
        None,
    ),
    "FiftyOne": (("data/a.jpg", "labels.json a.jpg"), "data/a.jpg", "labels.json"),
    "CVAT": (
        ("images/default/a.jpg", "annotations/instances_default.json a.jpg"),
        "images/default/a.jpg",
        "annotations/instances_default.json",
    ),
    "Label Studio": (("images/1-a.jpg", "result.json images\\1-a.jpg"), "images/1-a.jpg", "result.json"),
    "VOC": (("JPEGImages/a.jpg", "SegmentationClass/a.png", "Annotations/a.xml"), "JPEGImages/a.jpg", None),
    "masks beside": (("val/images/a.jpg", "val/masks/a.png"), "val/images/a.jpg", None),
    "both splits in one place": (
        ("images/val/1.jpg", "images/train/1.jpg", "train.json train/1.jpg", "val.json val/1.jpg"),
        "images/val/1.jpg",
        "val.json",
    ),
    "another's file first": (
        ("a.jpg", "instances_a.json b.jpg", "instances_b.json a.jpg"),
        "a.jpg",
        "instances_b.json",
    ),
    "a broken file beside": (("a.jpg", "instances.json.json", "labels.json a.jpg"), "a.jpg", "labels.json"),
    "zipped on macOS": (("data/a.jpg", "data/._a.jpg", "__MACOSX/data/._a.jpg", ".cache/b.jpg"), "data/a.jpg", None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_images_and_annotations_of_an_export_are_found(layout: str, tmp_path: Path):
    files, photo, annotations = LAYOUTS[layout]
    laid_out(tmp_path, *files)
    dataset = open_dataset(str(tmp_path), Path("nowhere"))
    assert [each.path for each in dataset.photos] == [tmp_path / photo]
    assert dataset.annotations == (tmp_path / annotations if annotations else None)


def test_the_split_that_is_used_is_in_the_datasets_name(tmp_path: Path):
    laid_out(tmp_path / "fish", "valid/v.jpg", "train/t.jpg")
    assert open_dataset(str(tmp_path / "fish"), tmp_path).name == "fish/valid"
    laid_out(tmp_path / "birds", "images/v.jpg")
    assert open_dataset(str(tmp_path / "birds"), tmp_path).name == "birds"


@pytest.mark.parametrize("named", ["val2017", "images/val2017"])
def test_the_annotations_beside_a_split_that_is_named_are_found(named: str, tmp_path: Path, monkeypatch):
    laid_out(tmp_path, f"{named}/v.jpg", "annotations/instances_val2017.json v.jpg")
    annotations = open_dataset(str(tmp_path / named), Path("nowhere")).annotations
    assert annotations == tmp_path / "annotations" / "instances_val2017.json"
    monkeypatch.chdir(tmp_path)
    assert open_dataset(named, Path("nowhere")).annotations is not None


def test_a_large_file_of_another_split_is_not_read_in_vain(tmp_path: Path, monkeypatch):
    laid_out(tmp_path, "val2017/v.jpg", "annotations/instances_val2017.json v.jpg", "annotations/instances_train.json")
    read: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    dataset = open_dataset(str(tmp_path), Path("nowhere"))
    assert read == ["v.jpg"]
    assert dataset.annotations == tmp_path / "annotations" / "instances_val2017.json"
    assert read == ["v.jpg", "instances_val2017.json"]


def test_several_folders_of_images_are_a_choice_of_the_persons(tmp_path: Path):
    laid_out(tmp_path, "cats/a.jpg", "dogs/b.jpg")
    with pytest.raises(DatasetError, match=r"images in several folders \(.*cats, .*dogs\); name one of them"):
        open_dataset(str(tmp_path), Path("nowhere"))
    laid_out(tmp_path, "val2014/a.jpg", "val2017/b.jpg")
    with pytest.raises(DatasetError, match=r"several folders \(.*val2014, .*val2017\)"):
        open_dataset(str(tmp_path), Path("nowhere"))


def test_a_folder_without_images_is_told_with_what_was_looked_for(tmp_path: Path):
    laid_out(tmp_path, "deep/deeper/deepest/a.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(DatasetError, match=r"looked for .* images/, .* val2017/, valid/, images/val/"):
        open_dataset(str(tmp_path), Path("nowhere"))


def test_what_is_no_photo_is_left_out_with_a_warning_that_names_it(tmp_path: Path, caplog):
    for name, content in (
        ("a.jpg", picture()),
        ("._a.jpg", b"\x00\x05\x16\x07"),
        (".hidden.jpg", picture()),
        ("empty.jpg", b""),
        ("page.jpg", b"<!doctype html>"),
        ("pointer.png", b"version https://git-lfs.github.com/spec/v1\n"),
        ("moving.gif", b"GIF89a"),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(picture())  # of an old archive: no UTF-8
    dataset = open_dataset(str(tmp_path), Path("nowhere"))
    assert [photo.name for photo in dataset.photos] == ["a.jpg"]
    (warning,) = caplog.messages
    assert "broken.jpg cannot be read (No such file or directory)" in warning
    assert "empty.jpg is empty" in warning
    assert "and 5 more" in warning
    assert r"caf\udce9.jpg' has a name that cannot be printed" in warning
    assert "._a.jpg" not in warning


@pytest.mark.parametrize("name", ["empty.jpg", "page.jpg"])
def test_a_folder_of_nothing_but_broken_pictures_is_told(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"<html>" if name == "page.jpg" else b"")
    with pytest.raises(DatasetError, match=name):
        open_dataset(str(tmp_path), Path("nowhere"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_left_out(tmp_path: Path, caplog):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "a.jpg").chmod(0)
    assert [photo.name for photo in open_dataset(str(tmp_path), Path("nowhere")).photos] == ["b.jpg"]
    assert "a.jpg cannot be read (Permission denied)" in caplog.text


def test_of_many_images_only_those_that_are_used_are_read(tmp_path: Path):
    laid_out(tmp_path, "a.jpg", "b.jpg")
    os.mkfifo(tmp_path / "c.jpg")
    (tmp_path / "d.jpg").touch()
    dataset = open_dataset(str(tmp_path), Path("nowhere"), 2)
    assert [photo.name for photo in dataset.photos] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp"), ("BMP", "image/bmp")],
)
def test_the_content_decides_of_which_type_a_photo_is(kind: str, media_type: str, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", kind)
    (photo,) = open_dataset(str(tmp_path), Path("nowhere")).photos
    assert photo.content_type == media_type


def test_the_odd_pictures_are_a_dataset(caplog):
    if not TESTDATA.is_dir():
        pytest.skip(f"no odd pictures in {TESTDATA}")
    names = {photo.name for photo in open_dataset(str(TESTDATA / "odd"), Path("nowhere")).photos}
    assert {"UPPER.JPG", "windows.jfif", "png_named.jpg", "photo 1 (copy) – Kopie ü 日本.jpg"} <= names
    assert not names & {"._ok.jpg", "zero.jpg", "html_404.jpg", "git_lfs_pointer.jpg", "heic_renamed.jpg", "still.gif"}
    assert "left out of the dataset odd" in caplog.text


def test_a_folder_in_coco_layout_is_a_dataset_with_annotations():
    if not TESTDATA.is_dir():
        pytest.skip(f"no test photographs in {TESTDATA}")
    dataset = open_dataset(str(TESTDATA / "aquarium"), Path("nowhere"), 5)
    assert (dataset.name, len(dataset.photos)) == ("aquarium", 5)
    assert dataset.annotations == TESTDATA / "aquarium" / "instances.json"
