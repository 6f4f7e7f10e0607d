"""`POST /infer`: what is accepted, what is refused and how, over real HTTP."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from running_server import RunningServer


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """A PNG of side x side one-bit pixels in a few hundred kB."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = b"\0" * (side // 8 + 1)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def rss_mb(server: RunningServer) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


@pytest.fixture(scope="module")
def photo(photos: list[Path]) -> Image.Image:
    return Image.open(photos[2]).convert("RGB")


ACCEPTED = {
    "png": lambda photo: encoded(photo),
    "webp": lambda photo: encoded(photo, "WEBP"),
    "bmp": lambda photo: encoded(photo, "BMP"),
    "grey": lambda photo: encoded(photo.convert("L")),
    "palette": lambda photo: encoded(photo.convert("P")),
    "rgba": lambda photo: encoded(photo.convert("RGBA")),
    "cmyk": lambda photo: encoded(photo.convert("CMYK"), "JPEG"),
    "16-bit": lambda photo: encoded(Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)),
    "1x1": lambda _: encoded(Image.new("RGB", (1, 1))),
    "8000x80": lambda _: encoded(Image.new("RGB", (8000, 80), (0, 99, 200)), "JPEG"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_any_picture_is_answered_with_detections_of_every_model(server: RunningServer, photo: Image.Image, name: str):
    answer = server.infer("baseline", files={"file": ACCEPTED[name](photo)})
    assert answer.status_code == 200, answer.text
    names = [model["model_name"] for model in answer.json()["detections"]]
    assert names == ["tf_efficientdet_d0", "tf_efficientdet_d1"]


def test_form_and_raw_body_give_the_same_answer(server: RunningServer, photo: Image.Image):
    data = encoded(photo, "JPEG")
    form = server.infer("baseline", files={"file": ("photo.jpg", data)}).json()
    raw = server.infer("baseline", content=data, headers={"Content-Type": "image/jpeg"}).json()
    boxes = [[model["boxes"] for model in answer["detections"]] for answer in (form, raw)]
    assert boxes[0] == boxes[1]


def test_boxes_of_a_rotated_photo_refer_to_the_upright_image(server: RunningServer, photo: Image.Image):
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer is to turn it clockwise by 90 degrees: back to `photo`
    upright = server.infer("baseline", files={"file": encoded(photo)}).json()
    rotated = server.infer("baseline", files={"file": encoded(turned, exif=exif)}).json()
    for first, second in zip(upright["detections"], rotated["detections"], strict=True):
        assert first["boxes"] == second["boxes"]


def test_16_bit_grey_is_the_same_picture_as_8_bit_grey(server: RunningServer, photo: Image.Image):
    answers = [
        server.infer("baseline", files={"file": ACCEPTED[name](photo)}).json()["detections"]
        for name in ("grey", "16-bit")
    ]
    assert [model["scores"] for model in answers[0]] == [model["scores"] for model in answers[1]]


def test_a_picture_without_a_pixel_left_is_refused(server: RunningServer):
    answer = server.infer("invalid", files={"file": encoded(Image.new("RGB", (8000, 1)))})
    assert answer.status_code == 400
    assert "8000x1" in answer.json()["detail"]


def chunks_of(total: int) -> Iterator[bytes]:
    for _ in range(total // 1_000_000):
        yield bytes(1_000_000)


BIG = 200_000_000
JPEG = {"Content-Type": "image/jpeg"}
REFUSED = {
    "not an image": (400, lambda _: {"files": {"file": b"hello world"}}),
    "raw, not an image": (400, lambda _: {"content": b"hello world", "headers": JPEG}),
    "truncated": (400, lambda jpeg: {"files": {"file": jpeg[: len(jpeg) // 2]}}),
    "raw, truncated": (400, lambda jpeg: {"content": jpeg[: len(jpeg) // 2], "headers": JPEG}),
    "empty file": (400, lambda _: {"files": {"file": b""}}),
    "empty raw body": (400, lambda _: {"content": b"", "headers": JPEG}),
    "nothing at all": (400, lambda _: {}),
    "no form": (400, lambda _: {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}),
    "no boundary": (400, lambda _: {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
    "missing field": (422, lambda jpeg: {"files": {"image": jpeg}}),
    "text field": (400, lambda _: {"files": {"file": (None, "text")}}),
    "other media type": (415, lambda jpeg: {"content": jpeg, "headers": {"Content-Type": "application/json"}}),
    "no media type": (415, lambda jpeg: {"content": jpeg}),
    "200 MB": (413, lambda _: {"content": bytes(BIG), "headers": JPEG}),
    "200 MB form": (413, lambda _: {"files": {"file": bytes(BIG)}}),
    "200 MB in chunks": (413, lambda _: {"content": chunks_of(BIG), "headers": JPEG}),
    "bomb": (413, lambda _: {"files": {"file": png_bomb(50_000)}}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_in_one_line(server: RunningServer, photo: Image.Image, name: str):
    status, request = REFUSED[name]
    jpeg = encoded(photo, "JPEG")
    server.infer("invalid", files={"file": jpeg})
    before = rss_mb(server)
    answer = server.infer("invalid", **request(jpeg))
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert detail
    assert "\n" not in detail
    # Twice the limit for a body: nothing of 200 MB, and no 2.5 gigapixels, was ever in memory.
    assert rss_mb(server) - before < 40
    assert server.infer("invalid", files={"file": jpeg}).status_code == 200
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("path", "listed"),
    [("nothing", ("baseline", "invalid")), ("invalid?model_set=nothing", ("mixed", "uniform"))],
)
def test_an_unknown_name_is_answered_with_those_there_are(server, photos: list[Path], path: str, listed: tuple):
    answer = server.infer(path, files={"file": photos[0].read_bytes()})
    assert answer.status_code == 404
    assert all(name in answer.json()["detail"] for name in listed)


def test_mutated_pictures_are_answered_or_refused_and_never_a_server_error(server, photo: Image.Image):
    random = np.random.default_rng(0)
    originals = [encoded(photo.resize((60, 40)), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")]
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for number in range(400):
            data = bytearray(originals[number % 4])
            for place in random.integers(0, len(data), random.integers(1, 12)):
                data[place] = random.integers(0, 256)
            cut = random.integers(1, len(data) + 1) if number % 3 == 0 else len(data)
            answer = client.post("/infer/invalid", files={"file": bytes(data[:cut])})
            assert answer.status_code in (200, 400, 413), answer.text
    assert "Traceback" not in server.log


def test_clients_that_disconnect_do_not_harm_the_others(server: RunningServer, photos: list[Path]):
    data = photos[0].read_bytes()
    for _ in range(5):
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{server.url}/infer/baseline", files={"file": data}, timeout=0.02)
    assert server.infer("invalid", files={"file": data}).status_code == 200
    assert "Traceback" not in server.log
