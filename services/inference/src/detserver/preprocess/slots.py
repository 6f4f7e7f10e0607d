"""Memory for what is prepared, used again and again."""

from collections import defaultdict
from collections.abc import Iterable

import torch


def new_pixels(size: tuple[int, int], memory_format: torch.memory_format) -> torch.Tensor:
    """A float32 tensor (3, height, width) with whatever is in it, laid out as `memory_format` says."""
    if memory_format == torch.channels_last:
        return torch.empty((*size, 3)).permute(2, 0, 1)
    return torch.empty((3, *size))


class Slots:
    """Tensors of pixels that nothing uses any more, by shape and layout. Any thread may take and give.

    New memory costs a page fault for every 4 kB: of the inputs of D0, D1 and D2 these took as long as all the rest of
    three letterboxes.

    What is given is the tensor itself that was taken, never a view of its memory: a view holds what it is one of, and
    the next one would hold that, in a chain that grows with every request.

    Args:
        keep: tensors of a kind that are kept at most; what is given beyond is left to the allocator.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._free: defaultdict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)

    def take(self, size: tuple[int, int], memory_format: torch.memory_format) -> torch.Tensor:
        """See `new_pixels`."""
        kind = (*size, 3 if memory_format == torch.channels_last else 1)
        try:
            return self._free[kind].pop()
        except IndexError:
            return new_pixels(size, memory_format)

    def give(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take back what `take` has given, and nothing uses any more."""
        for pixels in tensors:
            free = self._free[(*pixels.shape[1:], pixels.stride(2))]
            if len(free) < self._keep:
                free.append(pixels)
