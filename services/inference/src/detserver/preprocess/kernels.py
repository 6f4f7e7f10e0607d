"""The passes of a letterbox on a CPU, compiled by numba: Pillow's arithmetic, with a core's vector instructions.

Pillow's own take one value at a time: a photograph of COCO letterboxed for 512, 640 and 768 pixels takes 16 ms with
them and 5 ms with these (docs/results/peers.md). They hold no lock of the interpreter.

Compiled code is kept where `NUMBA_CACHE_DIR` says, which the server sets to its cache folder.
"""

import numba
import numpy as np
import numpy.typing as npt

from detserver.preprocess.letterbox import Planes
from detserver.preprocess.resample import BITS

_PLANES, _PICTURE = numba.uint8[:, :, ::1], numba.types.Array(numba.uint8, 3, "C", readonly=True)
_TAPS = (numba.int64[::1], numba.int64[::1], numba.int32[:, ::1])
_HALF = np.int32(1 << (BITS - 1))
_SHIFT = np.int32(BITS)
_SIDE = 8  # of the squares that `turn` turns: the compiler unrolls loops of a fixed length


@numba.njit([numba.void(_PICTURE, _PLANES)], nogil=True, cache=True)
def split(picture: npt.NDArray[np.uint8], planes: Planes) -> None:
    """Write the channels of a picture (height, width, 3) to `planes`."""
    for y in range(picture.shape[0]):
        for channel in range(3):
            for x in range(picture.shape[1]):
                planes[channel, y, x] = picture[y, x, channel]


@numba.njit([numba.void(_PLANES, *_TAPS, _PLANES)], nogil=True, cache=True)
def resize(
    planes: Planes,
    first: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    weights: npt.NDArray[np.int32],
    target: Planes,
) -> None:
    """Resize along the height, see `detserver.preprocess.resample.taps`; `target` is (3, new height, width)."""
    width = planes.shape[2]
    sums = np.empty(width, np.int32)
    for channel in range(3):
        for y in range(target.shape[1]):
            sums[:] = _HALF
            for tap in range(count[y]):
                weight = weights[y, tap]
                row = planes[channel, first[y] + tap]
                for x in range(width):
                    sums[x] += weight * np.int32(row[x])
            for x in range(width):
                target[channel, y, x] = min(max(sums[x] >> _SHIFT, 0), 255)


@numba.njit([numba.void(_PLANES, _PLANES)], nogil=True, cache=True)
def turn(planes: Planes, target: Planes) -> None:
    """Exchange rows and columns of each channel: a pass along the width is one along the height of what is turned."""
    height, width = planes.shape[1:]
    for channel in range(3):
        source, turned = planes[channel], target[channel]
        for top in range(0, height, _SIDE):
            for left in range(0, width, _SIDE):
                if top + _SIDE <= height and left + _SIDE <= width:
                    for x in range(_SIDE):
                        for y in range(_SIDE):
                            turned[left + x, top + y] = source[top + y, left + x]
                else:
                    for x in range(left, min(left + _SIDE, width)):
                        for y in range(top, min(top + _SIDE, height)):
                            turned[x, y] = source[y, x]


@numba.njit(
    [numba.void(_PLANES, numba.float32[:, ::1], numba.float32[::1], numba.float32[:, :, ::1])], nogil=True, cache=True
)
def normalise(
    planes: Planes,
    table: npt.NDArray[np.float32],
    fill: npt.NDArray[np.float32],
    target: npt.NDArray[np.float32],
) -> None:
    """Write `table[channel, value]` to `target` (3, rows, columns), and `fill` where it is larger than `planes`."""
    height, width = planes.shape[1:]
    for channel in range(3):
        for y in range(height):
            for x in range(width):
                target[channel, y, x] = table[channel, planes[channel, y, x]]
            target[channel, y, width:] = fill[channel]
        target[channel, height:] = fill[channel]


@numba.njit(
    [numba.void(_PLANES, numba.float32[:, ::1], numba.float32[::1], numba.float32[:, :, ::1])], nogil=True, cache=True
)
def normalise_channels_last(
    planes: Planes,
    table: npt.NDArray[np.float32],
    fill: npt.NDArray[np.float32],
    target: npt.NDArray[np.float32],
) -> None:
    """As `normalise`, to a `target` of (rows, columns, 3)."""
    height, width = planes.shape[1:]
    for y in range(target.shape[0]):
        inside = width if y < height else 0
        for x in range(inside):
            for channel in range(3):
                target[y, x, channel] = table[channel, planes[channel, y, x]]
        for x in range(inside, target.shape[1]):
            for channel in range(3):
                target[y, x, channel] = fill[channel]
