"""From the bytes of an upload to an upright RGB picture, within limits.

Metadata never decides whether a picture is served: of a JPEG and a PNG Pillow sees only what makes the pixels, because
it parses, and unpacks, much of the rest as soon as it opens a file.
"""

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

from detserver.errors import DetserverError, EmptyBody, ImageTooLarge, NotAnImage, OutOfMemory

# Pillow's own limit is a warning, and higher than ours; `decode` checks before a pixel is read.
Image.MAX_IMAGE_PIXELS = None

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_HEADER = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
# EXIF 2.32, 4.6.4: what undoes each orientation; 1 is upright, and anything else means nothing.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Markers of a JPEG (ITU T.81, table B.1), without the 0xFF before them.
_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_START_OF_SCAN, _RESTART_INTERVAL = 0xDA, 0xDD
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_APPLICATION = {*range(0xE0, 0xF0), 0xFE}
_ALONE = {0x00, 0x01, *range(0xD0, 0xDA), 0xFF}  # no segment follows
# JFIF's and Adobe's say which colours the components are; libjpeg reads them from these lengths on.
_COLOUR_SEGMENTS = {_APP0: 14, _APP14: 12}
# Bits that decode to something else than the zeros which libjpeg assumes where a scan ends too early.
_FILLER = b"\xaa" * 64


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image and turn it upright.

    Grey, palette, CMYK and 16-bit pictures become 8-bit RGB; an alpha channel is dropped, as effdet's loaders do.

    Args:
        data: a JPEG, PNG, WebP or BMP file.
        max_pixels: limit for width x height, checked before any pixel is decoded.

    Returns:
        Mode RGB, with the EXIF orientation applied.

    Raises:
        EmptyBody: `data` is empty.
        NotAnImage: no accepted format, cut off, or damaged.
        ImageTooLarge: more pixels than `max_pixels`.
        OutOfMemory: the machine has no memory left for the pixels.
    """
    if not data:
        raise EmptyBody("the body is empty: send an image as multipart field `file` or as the raw body")
    try:
        pixels, exif = _without_metadata(data)
        image = _whole(pixels, max_pixels)
        if image.format == "WEBP":
            exif = image.info.get("exif", b"")
        upright = _UPRIGHT.get(orientation(exif))
        image = _to_rgb(image)
        return image if upright is None else image.transpose(upright)
    except DetserverError:
        raise
    except UnidentifiedImageError as error:
        raise NotAnImage(f"not an image of an accepted format ({', '.join(FORMATS)})") from error
    except MemoryError as error:  # a picture within the limits: it is the machine that is short
        raise OutOfMemory("no memory left to decode the image; try again") from error
    except Exception as error:  # decoders fail on damaged files in any way
        raise NotAnImage(f"the image is cut off or damaged ({type(error).__name__}: {error})") from error


def orientation(exif: bytes) -> int:
    """The orientation that EXIF data gives, 1 where it gives none that can be read.

    Pillow would read every tag beside it, and a hundred kB can name gigabytes of them.

    Args:
        exif: a TIFF file (EXIF 2.32, 4.5), with or without the header `Exif` before it.
    """
    tiff = exif.removeprefix(_EXIF_HEADER)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for start in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, _ = struct.unpack_from(order + "HHI", tiff, start)
            if tag == _ORIENTATION_TAG:
                value_format = {3: "H", 4: "I"}.get(kind)
                return struct.unpack_from(order + value_format, tiff, start + 8)[0] if value_format else 1
    except struct.error:  # it ends before what it names
        pass
    return 1


def _load(data: bytes, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(
            f"the image is {image.width}x{image.height} pixels; the limit is {max_pixels / 1e6:g} megapixels"
        )
    image.load()
    return image


def _whole(data: bytes, max_pixels: int) -> Image.Image:
    try:
        return _load(data, max_pixels)
    except OSError:
        if (image := _without_end(data, max_pixels)) is None:
            raise
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 when it converts; the upper byte is the picture.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG or PNG without what is not needed for its pixels, and its EXIF data; any other file as it is."""
    if data.startswith(_PNG_SIGNATURE):
        return _png_pixels(data)
    if data.startswith(_START_OF_IMAGE):
        return _jpeg_pixels(data)
    return data, b""


def _png_pixels(data: bytes) -> tuple[bytes, bytes]:
    kept, exif = [memoryview(data)[: len(_PNG_SIGNATURE)]], b""
    position, kind = len(_PNG_SIGNATURE), b""
    while position + 8 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length  # with the checksum
        if kind == b"eXIf" and not exif:
            exif = data[position + 8 : end - 4]
        elif not kind[:1].islower():  # PNG 5.4: a capital marks what a decoder needs
            kept.append(memoryview(data)[position:end])
        position = end
    return b"".join(kept), exif


def _jpeg_pixels(data: bytes) -> tuple[bytes, bytes]:
    kept, exif, position = [], b"", 0
    for marker, start, end in _jpeg_segments(data):
        body = data[start + 4 : end]
        if marker == _APP1 and body.startswith(_EXIF_HEADER) and not exif:
            exif = body
        if marker in _APPLICATION and len(body) < _COLOUR_SEGMENTS.get(marker, len(body) + 1):
            kept.append(memoryview(data)[position:start])
            position = end
    return b"".join([*kept, memoryview(data)[position:]]), exif


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to the first scan's header; what is between them is left out."""
    position = len(_START_OF_IMAGE)
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker in _ALONE:
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        yield marker, position, end
        if marker == _START_OF_SCAN:
            return
        position = end


def _without_end(data: bytes, max_pixels: int) -> Image.Image | None:
    """The picture of a JPEG that lacks its end, as small cameras write them; None where pixels are missing, too.

    What follows a whole scan makes no difference to its pixels.
    """
    bodies = {marker: data[start + 4 : end] for marker, start, end in _jpeg_segments(data)}
    frame = next((bodies[marker] for marker in _SEQUENTIAL_FRAMES if marker in bodies), b"")
    scan = bodies.get(_START_OF_SCAN, b"")
    # One scan of all components, without restarts: of several, the last could be missing whole.
    if not data.startswith(_START_OF_IMAGE) or _RESTART_INTERVAL in bodies or not scan or frame[5:6] != scan[:1]:
        return None
    zeros, filled = (_load(data.rstrip(b"\xff") + rest + _END_OF_IMAGE, max_pixels) for rest in (b"", _FILLER))
    return zeros if ImageChops.difference(zeros, filled).getbbox() is None else None
