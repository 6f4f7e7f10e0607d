"""From a picture to what the networks take: letterboxed and normalised, once per distinct input configuration."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from effdet.data.transforms import ResizePad
from PIL import Image

from detserver.errors import ImageTooSmall


@dataclass(frozen=True)
class InputConfig:
    """What a network takes, by effdet's configuration of it. Models of which it is equal share one input.

    Attributes:
        size: height and width, pixels.
        mean: subtracted from each channel, red first, of values in [0, 1].
        std: then divided by.
        interpolation: of resizing: bilinear, bicubic, lanczos or hamming.
        fill_color: 8-bit RGB of the padding at the bottom and right.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    fill_color: tuple[int, int, int]


@dataclass(frozen=True)
class NetworkInput:
    """One picture as one input configuration has it.

    Attributes:
        pixels: float32 of shape (3, height, width), normalised.
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
        inputs: by input configuration (`ModelSpec.input`).
    """

    width: int
    height: int
    inputs: Mapping[InputConfig, NetworkInput]


def letterbox(image: Image.Image, config: InputConfig) -> NetworkInput:
    """Scale until it fits, pad at the bottom and right, normalise: effdet's evaluation transform.

    Args:
        image: mode RGB.
        config: what the network takes.

    Raises:
        ImageTooSmall: a side has no pixel left after scaling.
    """
    height, width = config.size
    if min(image.size) * min(height / image.height, width / image.width) < 1:
        raise ImageTooSmall(f"{image.width}x{image.height} pixels leave none of the shorter side at {width}x{height}")
    resized, info = ResizePad(config.size, config.interpolation, config.fill_color)(image, {})
    # numpy, not torch: decode threads must not each grow a pool of OpenMP threads beside the device thread's.
    # Planes first, then in place: a fourth of the time of the other order.
    pixels = np.asarray(resized).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels -= _of_8_bits(config.mean)
    pixels /= _of_8_bits(config.std)
    return NetworkInput(torch.from_numpy(pixels), info["img_scale"])


def prepare(image: Image.Image, configs: Iterable[InputConfig]) -> PreparedImage:
    """Letterbox `image` for each distinct configuration; see `letterbox`."""
    return PreparedImage(image.width, image.height, {config: letterbox(image, config) for config in set(configs)})


def _of_8_bits(channels: tuple[float, float, float]) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    """(3, 1, 1): float32 of 255 x the values, as effdet.data.loader.PrefetchLoader has them."""
    return np.array([255 * channel for channel in channels], dtype=np.float32)[:, None, None]
