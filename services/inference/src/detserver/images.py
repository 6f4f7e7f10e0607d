"""From the bytes of an upload to an upright RGB picture, within limits."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from detserver.errors import EmptyBody, ImageTooLarge, NotAnImage

# Pillow's own limit is a warning, and higher than ours; `decode` checks before a pixel is read.
Image.MAX_IMAGE_PIXELS = None

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

# What Pillow's decoders raise on damaged files, found by feeding them mutated ones (tests/test_images.py).
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)


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
    """
    if not data:
        raise EmptyBody("the body is empty: send an image as multipart field `file` or as the raw body")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image.width, image.height, max_pixels)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise NotAnImage(f"not an image of an accepted format ({', '.join(FORMATS)})") from error
    except _DECODER_ERRORS as error:
        raise NotAnImage(f"the image is cut off or damaged ({type(error).__name__}: {error})") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge(f"the image is {width}x{height} pixels; the limit is {max_pixels / 1e6:g} megapixels")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 when it converts; the upper byte is the picture.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    return image.convert("RGB")
