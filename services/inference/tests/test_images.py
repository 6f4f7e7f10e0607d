"""Pictures as people have them: what metadata may not decide, what is refused, and what nothing may grow by."""

import io
import struct
import tracemalloc
import zlib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from conftest import TESTDATA
from PIL import Image, PngImagePlugin
from running_server import RunningServer

from detserver.errors import EmptyBody, ImageTooLarge, NotAnImage, OutOfMemory
from detserver.preprocess import decoding as images

LIMIT = 50_000_000
WIDE, TALL = (240, 160), (160, 240)

# What README of the folder says is right, the first pattern that fits; the size where it names one.
ODD = (
    ("exif6_orientation_ascii.jpg", 200, WIDE),
    ("exif[5-8]*", 200, TALL),
    ("exif*", 200, WIDE),
    *((pattern, 400, None) for pattern in ("513x1*", "700x1*", "769x1*", "8000x1.png", "1x8000*", "zero*", "*.gif")),
    *((pattern, 400, None) for pattern in ("truncated_half*", "truncated_last_100*", "one_byte*", "soi_only*")),
    *((pattern, 400, None) for pattern in ("dnl_height0*", "precision12*", "sof3*", "leading_newline*", "heic*")),
    *((f"photo.{kind}", 400, None) for kind in ("tif", "avif", "jp2", "ico", "ppm", "svg")),
    *((pattern, 400, None) for pattern in ("html*", "git_lfs*", "._ok.jpg")),
    ("*", 200, None),
)
ODD_FOLDER = TESTDATA / "odd"
ODD_FILES = sorted(path.name for path in ODD_FOLDER.glob("*") if path.is_file() and path.name != "README.md")


@pytest.mark.skipif(not ODD_FILES, reason=f"no pictures in {ODD_FOLDER}")
@pytest.mark.parametrize("name", ODD_FILES or ["none"])
def test_an_odd_picture_is_answered_as_is_right_for_it(server: RunningServer, name: str):
    status, size = next((status, size) for pattern, status, size in ODD if fnmatch(name, pattern))
    data = (ODD_FOLDER / name).read_bytes()
    answer = server.infer("invalid?model_set=mixed", files={"file": (name, data)})
    assert answer.status_code == status, answer.text
    if status == 200:
        assert size in (None, images.decode(data, LIMIT).size)
    else:
        assert "\n" not in answer.json()["detail"]
    assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def photo(photos: list[Path]) -> Image.Image:
    """24 x 16 pixels, so that a turned one is known by its size."""
    return Image.open(photos[3]).convert("RGB").resize((24, 16))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """`png` with chunks behind its header (8 bytes of signature, 25 of IHDR)."""
    return png[:33] + b"".join(chunks) + png[33:]


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + jpeg[2:]


def tiff(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """A TIFF directory of entries (tag, type, count, value or offset)."""
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + directory + bytes(4)


def oriented(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return 0x0112, 3, 1, struct.pack(order + "H", value)


def with_exif(photo: Image.Image, kind: str, exif: bytes) -> bytes:
    if kind == "JPEG":
        return with_segment(encoded(photo, kind), 0xE1, b"Exif\0\0" + exif)
    if kind == "PNG":
        return with_chunks(encoded(photo, kind), chunk(b"eXIf", exif))
    return encoded(photo, kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(1, 9))
def test_a_picture_is_turned_upright_as_its_orientation_says(photo: Image.Image, kind: str, order: str, value: int):
    # The inverse of what undoes each orientation.
    stored = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(value, images._UPRIGHT.get(value))
    turned = photo if stored is None else photo.transpose(stored)
    found = images.decode(with_exif(turned, kind, tiff(oriented(value, order), order=order)), LIMIT)
    assert found.size == photo.size
    if kind == "PNG":  # the one without losses
        assert found.tobytes() == photo.tobytes()


SIX = oriented(6)
ODD_EXIF = {
    "a tag of a type that is none": (tiff(SIX, (0x010F, 99, 4, b"abcd")), 6),
    "a rational where text belongs": (tiff((0x010F, 5, 1, b"\x26\0\0\0"), SIX) + struct.pack("<II", 1, 2), 6),
    "text where a rational belongs": (tiff(SIX, (0x011A, 2, 4, b"72\0\0")), 6),
    "a rational by zero": (tiff(SIX, (0x011A, 10, 1, b"\x26\0\0\0")) + struct.pack("<ii", -1, 0), 6),
    "a value outside of the file": (tiff(SIX, (0x010F, 2, 4000, b"\xf0\xff\xff\xff")), 6),
    "a directory that is its own": (tiff(SIX, (0x8769, 4, 1, b"\x08\0\0\0")), 6),
    "an orientation of type long": (tiff((0x0112, 4, 1, b"\x06\0\0\0")), 6),
    "two orientations": (tiff((0x0112, 3, 2, b"\x06\0\x06\0")), 6),
    "an orientation as text": (tiff((0x0112, 2, 2, b"6\0")), 1),
    "an orientation of 0": (tiff(oriented(0)), 0),
    "an orientation of 9": (tiff(oriented(9)), 9),
    "no tag": (tiff(), 1),
    "more tags announced than there are": (b"II*\0\x08\0\0\0\xff\xff", 1),
    "a directory outside of the file": (b"II*\0\xff\xff\xff\xff", 1),
    "another kind of TIFF": (b"II+\0\x08\0\0\0\x10\0\0\0", 1),
    "no TIFF": (b"not a tiff header at all", 1),
    "nothing": (b"", 1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", ODD_EXIF)
def test_odd_exif_gives_its_orientation_or_none(photo: Image.Image, kind: str, name: str):
    exif, expected = ODD_EXIF[name]
    assert images.orientation(exif) == expected
    assert images.decode(with_exif(photo, kind, exif), LIMIT).size == ((16, 24) if expected == 6 else (24, 16))


UNPACKED = 200_000_000
PACKED = zlib.compress(bytes(UNPACKED), 9)
SAME_60_KB = tiff(*((tag, 7, 60_000, struct.pack("<I", 64)) for tag in range(5000))) + bytes(60_000)
METADATA = {
    "packed text": lambda photo: with_chunks(encoded(photo, "PNG"), chunk(b"zTXt", b"workflow\0\0" + PACKED)),
    "packed text behind the pixels": lambda photo: (
        encoded(photo, "PNG")[:-12] + chunk(b"zTXt", b"workflow\0\0" + PACKED) + chunk(b"IEND", b"")
    ),
    "packed international text": lambda photo: with_chunks(
        encoded(photo, "PNG"), chunk(b"iTXt", b"workflow\0\1\0\0\0" + PACKED)
    ),
    "packed profile": lambda photo: with_chunks(encoded(photo, "PNG"), chunk(b"iCCP", b"icc\0\0" + PACKED)),
    "many packed texts": lambda photo: with_chunks(
        encoded(photo, "PNG"), *(chunk(b"zTXt", b"%d\0\0" % number + PACKED) for number in range(20))
    ),
    "tags that share 60 kB": lambda photo: with_exif(photo, "PNG", SAME_60_KB),
    "tags that share 60 kB, WebP": lambda photo: with_exif(photo, "WEBP", SAME_60_KB),
    "tags that share 60 kB, JPEG": lambda photo: with_segment(
        encoded(photo, "JPEG"), 0xE1, b"Exif\0\0" + SAME_60_KB[:65_000]
    ),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_is_never_unpacked(photo: Image.Image, name: str):
    data = METADATA[name](photo)
    tracemalloc.start()
    try:
        assert images.decode(data, LIMIT).size == photo.size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(data) + 1_000_000


def png_text(photo: Image.Image) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    return encoded(photo, "PNG", pnginfo=text)


SERVED = {
    "two MB of packed text": png_text,
    "a profile of 2 MB": lambda photo: encoded(photo, "PNG", icc_profile=bytes(2_000_000)),
    "a checksum of text that is wrong": lambda photo: with_chunks(
        encoded(photo, "PNG"), chunk(b"tEXt", b"a\0b")[:-1] + b"x"
    ),
    "a broken profile": lambda photo: with_chunks(encoded(photo, "PNG"), chunk(b"iCCP", b"icc\0\0no zlib")),
    "a resolution of two bytes": lambda photo: with_chunks(encoded(photo, "PNG"), chunk(b"pHYs", b"ab")),
    "no end chunk": lambda photo: encoded(photo, "PNG")[:-12],
    "bytes behind the end": lambda photo: encoded(photo, "PNG") + bytes(1000),
    "a JPEG in a JPEG's tail": lambda photo: encoded(photo, "JPEG") * 2,
    "no end of a JPEG": lambda photo: encoded(photo, "JPEG")[:-2],
    "half an end of a JPEG": lambda photo: encoded(photo, "JPEG")[:-1],
    "a short JFIF header": lambda photo: with_segment(encoded(photo, "JPEG"), 0xE0, b"JFIF\0"),
    "a short Adobe segment": lambda photo: with_segment(encoded(photo, "JPEG"), 0xEE, b"Adobe"),
    "a short Photoshop segment": lambda photo: with_segment(
        encoded(photo, "JPEG"), 0xED, b"Photoshop 3.0\0" + b"8BIM\4"
    ),
    "a garbled multi-picture index": lambda photo: with_segment(encoded(photo, "JPEG"), 0xE2, b"MPF\0" + bytes(7)),
    "a comment": lambda photo: encoded(photo, "JPEG", comment=b"\xff\xff\0"),
    "fill bytes between segments": lambda photo: b"\xff\xd8" + b"\xff" * 9 + encoded(photo, "JPEG")[2:],
    "animated": lambda photo: encoded(photo, "PNG", save_all=True, append_images=[Image.new("RGB", photo.size)]),
    "transparent colour": lambda photo: encoded(photo, "PNG", transparency=(1, 2, 3)),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_is_not_needed_for_the_pixels_does_not_decide(photo: Image.Image, name: str):
    data = SERVED[name](photo)
    kind = "PNG" if data.startswith(b"\x89PNG") else "JPEG"
    expected = Image.open(io.BytesIO(encoded(photo, kind))).convert("RGB")
    assert images.decode(data, LIMIT).tobytes() == expected.tobytes()


def test_the_colours_of_a_cmyk_picture_are_those_of_its_adobe_segment(photo: Image.Image):
    data = encoded(photo.convert("CMYK"), "JPEG", quality=95)
    found = np.asarray(images.decode(data, LIMIT), dtype=int)
    assert np.abs(found - np.asarray(photo, dtype=int)).mean() < 10


REFUSED = {
    "nothing": (b"", EmptyBody),
    "one byte": (b"\xff", NotAnImage),
    "a start alone": (b"\xff\xd8\xff\xd9", NotAnImage),
    "a PNG's signature alone": (b"\x89PNG\r\n\x1a\n", NotAnImage),
    "text": (b"<html>404</html>", NotAnImage),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused(name: str):
    data, error = REFUSED[name]
    with pytest.raises(error):
        images.decode(data, LIMIT)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_a_jpeg_without_all_of_its_pixels_is_refused(photos: list[Path], options: dict):
    data = encoded(Image.open(photos[3]).resize((120, 80)), "JPEG", **options)
    for cut in range(12, len(data) - 700, 13):
        with pytest.raises(NotAnImage):
            images.decode(data[:-cut], LIMIT)


def test_too_many_pixels_are_refused_before_one_is_decoded(photo: Image.Image):
    with pytest.raises(ImageTooLarge, match="24x16"):
        images.decode(encoded(photo, "PNG"), 24 * 16 - 1)


@pytest.mark.parametrize(
    ("raised", "answered"),
    [(AttributeError("a bug\nof a decoder"), NotAnImage), (RecursionError(), NotAnImage), (MemoryError(), OutOfMemory)],
)
def test_whatever_a_decoder_raises_is_one_line(photo: Image.Image, monkeypatch, raised: Exception, answered: type):
    data = encoded(photo, "BMP")

    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(answered) as found:
        images.decode(data, LIMIT)
    assert "\n" not in str(found.value)
