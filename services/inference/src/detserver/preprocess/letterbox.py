"""From a picture to what the networks take: letterboxed and normalised, once per distinct input configuration.

It is effdet's evaluation transform (`effdet.data.transforms.ResizePad` with Pillow, and the normalisation of
`effdet.data.loader.PrefetchLoader`), bit for bit, on the host or on the device.
"""

import importlib
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from detserver.errors import ImageTooSmall
from detserver.preprocess import resample
from detserver.preprocess.slots import Slots, new_pixels

LARGE_PIXELS = 4_000_000
"""A picture that has more is large: Pillow resizes it, which needs none of the copies that the kernels make of it."""

# Only Pillow resizes with these: their weights hang on the last bits of a sine, and on who has compiled it.
_SINES = {"hamming": Image.Resampling.HAMMING, "lanczos": Image.Resampling.LANCZOS}
_PILLOWS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, **_SINES}

Planes = npt.NDArray[np.uint8]
"""The channels of a picture, uint8 (3, height, width)."""


@dataclass(frozen=True)
class InputConfig:
    """What a network takes, by effdet's configuration of it. Models of which it is equal share one input.

    Attributes:
        size: height and width, pixels.
        mean: subtracted from each channel, red first, of values in [0, 1].
        std: then divided by.
        interpolation: of resizing: bilinear, bicubic, hamming or lanczos; other names are bilinear, as effdet has it.
        fill_color: 8-bit RGB of the padding at the bottom and right.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    fill_color: tuple[int, int, int]

    @property
    def filter(self) -> str:
        """The interpolation that is meant."""
        return self.interpolation if self.interpolation in _PILLOWS else "bilinear"

    @property
    def by_pillow_alone(self) -> bool:
        """Whether nothing but Pillow resizes with it exactly."""
        return self.filter in _SINES


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


@dataclass(frozen=True)
class Picture:
    """The channels of one picture.

    Attributes:
        planes: uint8 (3, height, width).
        turned: the same with rows and columns exchanged, uint8 (3, width, height).
    """

    planes: Planes
    turned: Planes

    @classmethod
    def of(cls, image: Image.Image) -> "Picture":
        """The channels of an image of mode RGB."""
        planes = np.empty((3, image.height, image.width), np.uint8)
        _kernels().split(np.asarray(image), planes)
        return cls(planes, _turned(planes))


def prepare(
    image: Image.Image,
    configs: Iterable[InputConfig],
    memory_format: torch.memory_format = torch.contiguous_format,
    helpers: Executor | None = None,
    slots: Slots | None = None,
) -> PreparedImage:
    """Letterbox `image` for each distinct configuration, on the host; see `letterbox`.

    Args:
        helpers: threads that may do a part of it, if they are free; the caller's may be one of them.
        slots: where the memory comes from, and goes back to with the prepared image: no tensor of it outlives it then.
    """
    picture = Picture.of(image) if image.width * image.height <= LARGE_PIXELS else None
    largest, *others = sorted(dict.fromkeys(configs), key=lambda config: -config.size[0] * config.size[1])

    def of(config: InputConfig) -> NetworkInput:
        if picture is not None and not config.by_pillow_alone:
            return letterbox(picture, config, memory_format, slots)
        width, height, scale = _scaled(image.width, image.height, config)
        small = Picture.of(image.resize((width, height), _PILLOWS[config.filter]))
        return _normalised(small.planes, scale, config, memory_format, slots)

    offered = {config: helpers.submit(of, config) for config in others} if helpers else {}
    inputs = {largest: of(largest)}
    # What no other thread has begun with is done here, from the end that they reach last.
    for config in reversed(others):
        if config not in offered or offered[config].cancel():
            inputs[config] = of(config)
    inputs |= {config: offered[config].result() for config in others if config not in inputs}
    prepared = PreparedImage(image.width, image.height, inputs)
    if slots is not None:
        weakref.finalize(prepared, slots.give, [each.pixels for each in inputs.values()])
    return prepared


def letterbox(
    picture: Picture,
    config: InputConfig,
    memory_format: torch.memory_format = torch.contiguous_format,
    slots: Slots | None = None,
) -> NetworkInput:
    """Scale until it fits, pad at the bottom and right, normalise; on the host, on one core.

    Args:
        picture: to be letterboxed.
        config: what the network takes, not `by_pillow_alone`.
        memory_format: how the result lies in memory; its shape is the same.
        slots: where its memory comes from; None is new memory.

    Raises:
        ImageTooSmall: a side has no pixel left after scaling.
    """
    planes = picture.planes
    width, height, scale = _scaled(planes.shape[2], planes.shape[1], config)
    for dimension in resample.passes(planes.shape[1], planes.shape[2], height, width):
        before, after = planes.shape[dimension], height if dimension == -2 else width
        if before == after:
            continue
        taps = resample.taps(before, after, config.filter)
        if dimension == -2:
            planes = _resized(planes, taps)
        else:
            turned = picture.turned if planes is picture.planes else _turned(planes)
            planes = _turned(_resized(turned, taps))
    return _normalised(planes, scale, config, memory_format, slots)


def prepare_on_device(
    pixels: torch.Tensor,
    configs: Iterable[InputConfig],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> PreparedImage:
    """Letterbox a picture for each distinct configuration where it lies; see `letterbox_on_device`."""
    height, width = pixels.shape[:2]
    planes = pixels.permute(2, 0, 1).contiguous()
    inputs = {config: letterbox_on_device(planes, config, memory_format) for config in dict.fromkeys(configs)}
    return PreparedImage(width, height, inputs)


@torch.inference_mode()
def letterbox_on_device(
    planes: torch.Tensor, config: InputConfig, memory_format: torch.memory_format = torch.contiguous_format
) -> NetworkInput:
    """`letterbox` by tensor operations, on the device of `planes`.

    Args:
        planes: the picture, uint8 (3, H, W).
        config: what the network takes, not `by_pillow_alone`.
        memory_format: how the result lies in memory; its shape is the same.

    Raises:
        ImageTooSmall: a side has no pixel left after scaling.
    """
    width, height, scale = _scaled(planes.shape[2], planes.shape[1], config)
    resized = resample.resize(planes, height, width, config.filter)
    mean, std, fill = _constants_on(planes.device, config)
    lying = torch.empty(1, 3, *config.size, device=planes.device, memory_format=memory_format)
    (target,) = lying
    target.copy_(fill.expand_as(target))
    # By tensors, not numbers: on a GPU torch multiplies by the reciprocal of a number.
    target[:, :height, :width] = (resized - mean) / std
    return NetworkInput(target, scale)


def _scaled(width: int, height: int, config: InputConfig) -> tuple[int, int, float]:
    """Width and height that fit, and the factor back, by the arithmetic of `ResizePad`."""
    most_high, most_wide = config.size
    scale = min(most_high / height, most_wide / width)
    if min(width, height) * scale < 1:
        raise ImageTooSmall(f"{width}x{height} pixels leave none of the shorter side at {most_wide}x{most_high}")
    return int(width * scale), int(height * scale), 1.0 / scale


@lru_cache(maxsize=64)
def _constants(config: InputConfig) -> tuple[npt.NDArray[np.float32], ...]:
    """Mean and deviation of 8-bit values, and the normalised padding, of each channel, float32."""
    mean, std = (np.array([255 * each for each in values], np.float32) for values in (config.mean, config.std))
    return mean, std, (np.array(config.fill_color, np.float32) - mean) / std


@lru_cache(maxsize=64)
def _constants_on(device: torch.device, config: InputConfig) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(values).reshape(3, 1, 1).to(device) for values in _constants(config))


@lru_cache(maxsize=64)
def _table(config: InputConfig) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The normalised values of all 8-bit ones, float32 (3, 256), and those of the padding."""
    mean, std, fill = _constants(config)
    return (np.arange(256, dtype=np.float32) - mean[:, None]) / std[:, None], fill


def _normalised(
    planes: Planes, scale: float, config: InputConfig, memory_format: torch.memory_format, slots: Slots | None
) -> NetworkInput:
    table, fill = _table(config)
    take = new_pixels if slots is None else slots.take
    pixels = take(config.size, memory_format)
    if memory_format == torch.channels_last:
        _kernels().normalise_channels_last(planes, table, fill, pixels.permute(1, 2, 0).numpy())
    else:
        _kernels().normalise(planes, table, fill, pixels.numpy())
    return NetworkInput(pixels, scale)


def _resized(planes: Planes, taps: resample.Taps) -> Planes:
    target = np.empty((3, len(taps[0]), planes.shape[2]), np.uint8)
    _kernels().resize(planes, *taps, target)
    return target


def _turned(planes: Planes) -> Planes:
    target = np.empty((3, planes.shape[2], planes.shape[1]), np.uint8)
    _kernels().turn(planes, target)
    return target


@lru_cache(maxsize=1)
def _kernels() -> ModuleType:
    """`detserver.preprocess.kernels`, which no server needs before its first image, and none on a GPU: it takes 2 s."""
    return importlib.import_module("detserver.preprocess.kernels")
