"""Up to which size batches pay: on a CPU larger ones are often slower, image for image."""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from statistics import median

from detserver.engine.work import Key

# Of the last batches of a size; fewer than so many tell nothing, because the machine may have been busy.
_BATCHES = 3

# Where a smaller size has not been seen often enough, one in so many batches is made of it.
_TRY_EVERY = 3

# One in so many batches has the next larger size, or the next smaller one: what is slower now may not stay so.
_LOOK_AGAIN_EVERY = 50


class WorthwhileSizes:
    """Learns, for each implementation and model set, the size of batches beyond which an image takes longer."""

    def __init__(self) -> None:
        self._image_s: defaultdict[tuple[Key, int], deque[float]] = defaultdict(lambda: deque(maxlen=_BATCHES))
        self._batches: Counter[Key] = Counter()

    def note(self, key: Key, size: int, image_s: float) -> None:
        """Learn what a batch of `size` images took for each of them, seconds."""
        self._image_s[key, size].append(image_s)
        self._batches[key] += 1

    def largest(self, key: Key, sizes: Sequence[int]) -> int:
        """The largest size that the next batch is to have: the largest of `sizes` until others have been faster.

        Args:
            sizes: that the implementation can run, ascending.
        """
        known = [size for size in sizes if self._knows(key, size)]
        if not known:
            return sizes[-1]
        at = sizes.index(min(known, key=lambda size: median(self._image_s[key, size])))
        batches = self._batches[key]
        if at and sizes[at - 1] not in known and batches % _TRY_EVERY == 0:
            return sizes[at - 1]
        if sizes[at] == known[-1]:
            return sizes[-1]  # nothing speaks against larger ones
        if batches % _LOOK_AGAIN_EVERY == 0:
            larger = batches // _LOOK_AGAIN_EVERY % 2 == 0
            return sizes[at + 1 if larger else max(at - 1, 0)]
        return sizes[at]

    def _knows(self, key: Key, size: int) -> bool:
        return len(self._image_s[key, size]) == _BATCHES
