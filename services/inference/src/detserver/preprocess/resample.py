"""Pillow's resize of 8-bit pictures: its weights, and the whole of it as tensor operations for any device.

Pillow 13 resizes in two passes. Each is a sum of 8-bit values with weights in fixed point, rounded to 8 bits
(src/libImaging/Resample.c). Such sums stay below 2^31, so that products of float64 matrices give them exactly, in
whatever order a device adds them up.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

BITS = 22
"""Of the weights' fraction: Pillow's PRECISION_BITS."""

_ROUND_UP = float(1 << (BITS - 1))

# Values in float64 at a time, 32 MB: a picture of 50 megapixels would take 1.2 GB at once.
_AT_ONCE = 1 << 22

Taps = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32]]
"""Of each new value the first of the old ones that it is a sum of, how many these are, and their weights times 2^22."""

Filter = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def _triangle(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(x < 1, 1 - x, 0.0)


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Keys' convolution with a = -0.5.
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_FILTERS: dict[str, tuple[Filter, float]] = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}
"""By name: the filter, of a distance, and up to which distance it is not zero."""


def resize(pixels: torch.Tensor, height: int, width: int, interpolation: str) -> torch.Tensor:
    """What `PIL.Image.Image.resize` of Pillow 13 makes of a picture.

    Args:
        pixels: uint8 (3, H, W).
        height: of the result.
        width: of the result.
        interpolation: bilinear or bicubic.

    Returns:
        uint8 (3, height, width), on the same device.
    """
    for dimension in passes(pixels.shape[-2], pixels.shape[-1], height, width):
        size = height if dimension == -2 else width
        if size != pixels.shape[dimension]:
            pixels = _one_pass(pixels, size, interpolation, dimension)
    return pixels


def passes(before_height: int, before_width: int, height: int, width: int) -> tuple[int, int]:
    """The dimensions in the order in which Pillow 13 resizes them: rows first where many are to go."""
    rows_first = height < before_height and before_height - height > 2 * (before_width - width)
    return (-2, -1) if rows_first else (-1, -2)


def _one_pass(pixels: torch.Tensor, size: int, interpolation: str, dimension: int) -> torch.Tensor:
    matrix = _weights_on(pixels.device, pixels.shape[dimension], size, interpolation)
    other = -1 if dimension == -2 else -2
    step = max(1, _AT_ONCE // (pixels.numel() // pixels.shape[other]))
    passed = []
    for part in torch.split(pixels, step, other):
        exact = part.to(torch.float64)
        sums = matrix @ exact if dimension == -2 else exact @ matrix.T
        passed.append(sums.add_(_ROUND_UP).mul_(2.0**-BITS).floor_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(passed, other) if len(passed) > 1 else passed[0]


def _weights_on(device: torch.device, before: int, after: int, interpolation: str) -> torch.Tensor:
    """The weights of one pass as a matrix, float64 of shape (after, before); made anew, since large ones are 50 MB."""
    first, count, weights = taps(before, after, interpolation)
    rows, places = np.nonzero(np.arange(weights.shape[1]) < count[:, None])
    rows_on, columns_on, values_on = (
        torch.from_numpy(each).to(device) for each in (rows, first[rows] + places, weights[rows, places])
    )
    matrix = torch.zeros(after, before, dtype=torch.float64, device=device)
    matrix[rows_on, columns_on] = values_on.to(torch.float64)
    return matrix


@lru_cache(maxsize=256)
def taps(before: int, after: int, interpolation: str) -> Taps:
    """What each value of one pass is a sum of.

    As `precompute_coeffs` and `normalize_coeffs_8bpc` have it, to the order of the additions.
    """
    filter_of, reach = _FILTERS[interpolation]
    scale = before / after
    stretch = max(scale, 1.0)
    centers = (np.arange(after) + 0.5) * scale
    first = np.maximum((centers - reach * stretch + 0.5).astype(np.int64), 0)
    count = np.minimum((centers + reach * stretch + 0.5).astype(np.int64), before) - first
    places = np.arange(count.max())
    values = filter_of(np.abs((first[:, None] + places - centers[:, None] + 0.5) * (1.0 / stretch)))
    values[places >= count[:, None]] = 0.0
    # One after the other, as C adds them up; `sum` of numpy adds pairs.
    totals = np.cumsum(values, axis=1)[:, -1:]
    weights = np.where(values < 0, -0.5, 0.5) + values / totals * (1 << BITS)
    weights[places >= count[:, None]] = 0.0
    return first, count, weights.astype(np.int32)  # towards zero, as C
