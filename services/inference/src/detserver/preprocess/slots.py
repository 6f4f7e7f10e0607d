"""Memory for what is prepared, used again and again."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]


class Slots:
    """Arrays of float32 that nothing uses any more, by shape. Any thread may take and give.

    New memory costs a page fault for every 4 kB: of the inputs of D0, D1 and D2 these took as long as all the rest of
    three letterboxes.

    Args:
        keep: arrays of a shape that are kept at most; what is given beyond is left to the allocator.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._free: defaultdict[tuple[int, ...], list[Pixels]] = defaultdict(list)

    def take(self, shape: tuple[int, ...]) -> Pixels:
        """An array with whatever is in it."""
        try:
            return self._free[shape].pop()
        except IndexError:
            return np.empty(shape, np.float32)

    def give(self, arrays: Iterable[Pixels]) -> None:
        """Take back what `take` has given, and nothing uses any more."""
        for array in arrays:
            free = self._free[array.shape]
            if len(free) < self._keep:
                free.append(array)
