"""Downloads of large files from a server that breaks off, and archives that are not what they should be."""

import zipfile
from pathlib import Path

import pytest
from file_server import FileServer, zipped

from detbench.datasets.archive import extract
from detbench.datasets.download import RemoteFile, download
from detbench.errors import DatasetError


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
