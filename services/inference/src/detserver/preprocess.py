"""From a picture to what the networks take: letterboxed and normalised, once per distinct input size."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from effdet.data.transforms import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ResizePad
from PIL import Image

from detserver.errors import ImageTooSmall

# effdet pads with the mean colour (effdet.data.transforms.resolve_fill_color).
_FILL_COLOUR = tuple(round(255 * channel) for channel in IMAGENET_DEFAULT_MEAN)
# float32 of 255 x the constants, as effdet.data.loader.PrefetchLoader has them. numpy, not torch: decode threads must
# not each grow a pool of OpenMP threads beside the device thread's.
_MEAN = np.array([255 * channel for channel in IMAGENET_DEFAULT_MEAN], dtype=np.float32)[:, None, None]
_STD = np.array([255 * channel for channel in IMAGENET_DEFAULT_STD], dtype=np.float32)[:, None, None]


@dataclass(frozen=True)
class NetworkInput:
    """One picture at one input size.

    Attributes:
        pixels: float32 of shape (3, size, size), normalised by ImageNet's mean and deviation.
        scale: factor from the network's pixels to the picture's; effdet's `img_scale`.
    """

    pixels: torch.Tensor
    scale: float


@dataclass(frozen=True)
class PreparedImage:
    """One picture, ready for every model of a set.

    Attributes:
        width: of the upright picture, pixels.
        height: of the upright picture, pixels.
        inputs: by input size (side of the square, pixels).
    """

    width: int
    height: int
    inputs: Mapping[int, NetworkInput]


def letterbox(image: Image.Image, size: int) -> NetworkInput:
    """Scale so that the longer side is `size`, pad at the bottom and right, normalise: effdet's evaluation transform.

    Args:
        image: mode RGB.
        size: side of the square, pixels.

    Raises:
        ImageTooSmall: a side has no pixel left after scaling.
    """
    longer, shorter = max(image.size), min(image.size)
    if int(shorter * (size / longer)) < 1:
        raise ImageTooSmall(f"{image.width}x{image.height} pixels leave none of the shorter side at {size} pixels")
    resized, info = ResizePad(size, "bilinear", _FILL_COLOUR)(image, {})
    # Planes first, then in place: a fourth of the time of the other order.
    pixels = np.asarray(resized).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels -= _MEAN
    pixels /= _STD
    return NetworkInput(torch.from_numpy(pixels), info["img_scale"])


def prepare(image: Image.Image, sizes: Iterable[int]) -> PreparedImage:
    """Letterbox `image` for each distinct size; see `letterbox`."""
    return PreparedImage(image.width, image.height, {size: letterbox(image, size) for size in set(sizes)})
