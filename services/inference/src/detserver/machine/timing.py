"""How long a call takes, again and again."""

import timeit
from collections.abc import Callable


def seconds_of(call: Callable[[], object], repeats: int, limit_s: float) -> list[float]:
    """Seconds of each of `repeats` calls, after one that does not count.

    Args:
        call: what to time; it is to return when its work is done.
        limit_s: where so many seconds do not hold all repeats, there are fewer; one at least.
    """
    timer = timeit.Timer(call)
    timer.timeit(1)
    first = timer.timeit(1)
    within = int(min(repeats, limit_s / first)) - 1
    return [first, *(timer.repeat(within, number=1) if within > 0 else ())]
