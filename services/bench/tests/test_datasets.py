"""Datasets: named ones from a local HTTP server, and folders."""

import hashlib
import http.server
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from detbench.cli import main
from detbench.datasets import NAMES, SOURCES, fetch, open_dataset
from detbench.datasets.archive import extract
from detbench.datasets.coco_val2017 import CocoVal2017
from detbench.datasets.download import RemoteFile, download
from detbench.datasets.roboflow_aquarium import URL_VARIABLE
from detbench.errors import DatasetError

TESTDATA = Path(__file__).parents[3].parent / "shared" / "testdata"


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 50).save(buffer, "JPEG")
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@dataclass
class FileServer:
    """Serves `files` by path; `cuts` of its first answers break off half way; `ranges` whether it knows Range."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: int = 0
    ranges: bool = True
    asked: list[str] = field(default_factory=list)

    def remote(self, name: str, content: bytes, **changes: object) -> RemoteFile:
        self.files[f"/{name}"] = content
        fields = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} | changes
        return RemoteFile(f"{self.url}/{name}", name, **fields)  # type: ignore[arg-type]


@pytest.fixture
def files() -> Iterator[FileServer]:
    state = FileServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(f"{self.path} {wanted or ''}".strip())
            body = state.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and state.ranges else 0
            if start >= len(body) and start:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            rest = body[start:]
            if state.cuts:
                state.cuts -= 1
                rest = rest[: len(rest) // 2]
            self.wfile.write(rest)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()


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


def test_a_broken_download_goes_on_where_it_ended(files: FileServer, tmp_path: Path):
    content = bytes(range(256)) * 400
    remote = files.remote("file.zip", content)
    files.cuts = 2
    assert download(remote, tmp_path, retry_wait_s=0).read_bytes() == content
    half = len(content) // 2
    assert files.asked == ["/file.zip", f"/file.zip bytes={half}-", f"/file.zip bytes={half + half // 2}-"]


def test_what_was_fetched_survives_a_failure_and_is_used_by_the_next_call(files: FileServer, tmp_path: Path):
    content = bytes(1000)
    remote = files.remote("file.zip", content)
    files.cuts = 99
    with pytest.raises(DatasetError, match="call again to go on"):
        download(remote, tmp_path, retry_wait_s=0)
    assert not (tmp_path / "file.zip").exists()
    files.cuts = 0
    files.asked.clear()
    assert download(remote, tmp_path).read_bytes() == content
    assert files.asked[0].startswith("/file.zip bytes=")


def test_a_server_without_ranges_is_asked_from_the_start(files: FileServer, tmp_path: Path):
    content = bytes(range(256)) * 10
    files.cuts, files.ranges = 1, False
    assert download(files.remote("file.zip", content), tmp_path, retry_wait_s=0).read_bytes() == content


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size_bytes": 99}])
def test_another_file_than_expected_is_deleted(files: FileServer, tmp_path: Path, wrong: dict):
    remote = files.remote("file.zip", bytes(100), **wrong)
    with pytest.raises(DatasetError, match="not the expected file"):
        download(remote, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_one_request_and_a_clear_error(files: FileServer, tmp_path: Path):
    with pytest.raises(DatasetError, match="404"):
        download(RemoteFile(f"{files.url}/nothing", "nothing", None, None), tmp_path)
    assert len(files.asked) == 1


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "..\\out.txt", "C:out.txt", link()])
def test_a_member_that_would_land_outside_is_refused_and_nothing_is_written(tmp_path: Path, name):
    archive, target = tmp_path / "evil.zip", tmp_path / "deep" / "target"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("good.txt", "good")
        out.writestr(name, "evil")
    with pytest.raises(DatasetError, match="refused"):
        extract(archive, target, 1000)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["evil.zip"]


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path: Path):
    (tmp_path / "bomb.zip").write_bytes(zipped({"zeros": bytes(2000)}))
    with pytest.raises(DatasetError, match="unpacks to"):
        extract(tmp_path / "bomb.zip", tmp_path / "target", 1000)


def test_a_damaged_archive_is_refused(tmp_path: Path):
    content = bytearray(zipped({"file": b"content" * 100}))
    content[60] ^= 255
    (tmp_path / "damaged.zip").write_bytes(content)
    with pytest.raises(DatasetError, match="damaged"):
        extract(tmp_path / "damaged.zip", tmp_path / "target", 10_000)


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
