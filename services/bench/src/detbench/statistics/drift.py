"""Whether throughput or latency still drifts while it is measured.

Mann and Kendall's trend test (scipy.stats.kendalltau of the means of bins against time) and the slope of Theil and Sen
(scipy.stats.theilslopes) decide together: in a long run a drift of 0.1 % is significant and harmless, in a short one
10 % may be chance. Both look at the whole window: a single step, or a slow first tenth, is no trend to them.

Of simulated runs without a drift 1 % are called drifting where bins do not depend on each other. Of a queue that is
90 % busy it is 16 % with 300 requests and 1 % with 3,000: so short a run has not seen its mean, and has to be longer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

# One verdict asks for two series, and a sweep has dozens of runs: at 5 % every tenth good run would be called invalid.
SIGNIFICANCE = 0.01

# The mean of a run that drifts by 5 % is 2.5 % away from what it started or ended with: the noise of a round.
SMALLEST_DRIFT = 0.05

# The test supposes that bins do not depend on each other; wide ones depend less: a busy queue stays busy for long.
# With 20 a drift of 10 % is found in 80 % of runs where the noise of a bin is 3 %.
BINS = 20

# With fewer answers in a bin their number is mostly the same in all of them, and says nothing.
ANSWERS_PER_BIN = 5

# With three of their 28 pairs out of order 8 bins are still significant, 7 with one of 21, 6 with none.
FEWEST_BINS = 8


@dataclass(frozen=True)
class Trend:
    """What a series does from the start of the window to its end.

    Attributes:
        change: of the straight line through the series, in units of the series' median: 0.1 is 10 % up.
        p_value: how probable so clear an order in time is where there is no trend.
    """

    change: float
    p_value: float

    @property
    def drifting(self) -> bool:
        """Whether the trend is both beyond chance and large enough to matter."""
        return self.p_value < SIGNIFICANCE and abs(self.change) >= SMALLEST_DRIFT


def rate_trend(answered_s: ArrayLike, window_s: float) -> Trend | None:
    """The trend of the throughput during a window in which the load itself was steady.

    Args:
        answered_s: when each answer came, in seconds since the window opened, in any order.
        window_s: how long the window was, in seconds; answers outside do not count.

    Returns:
        None with fewer than 40 answers, which cannot say.
    """
    times = np.asarray(answered_s, dtype=np.float64)
    edges = _edges(int(((times >= 0) & (times <= window_s)).sum()), window_s)
    if edges is None:
        return None
    counts, _ = np.histogram(times, edges)
    return _trend(edges[:-1] / window_s, counts)


def latency_trend(sent_s: ArrayLike, latencies_ms: ArrayLike, window_s: float) -> Trend | None:
    """The trend of the mean latency during a window.

    Args:
        sent_s: when each request that was answered was sent, or scheduled to be, in seconds since the window opened.
        latencies_ms: of the same requests, all of them finite and above 0.
        window_s: how long the window was, in seconds; requests outside do not count.

    Returns:
        None with fewer than 40 answers, or with all of them in a small part of the window, which cannot say.
    """
    times = np.asarray(sent_s, dtype=np.float64)
    edges = _edges(int(((times >= 0) & (times <= window_s)).sum()), window_s)
    if edges is None:
        return None
    counts, _ = np.histogram(times, edges)
    sums, _ = np.histogram(times, edges, weights=np.asarray(latencies_ms, dtype=np.float64))
    filled = counts > 0
    if filled.sum() < FEWEST_BINS:
        return None
    return _trend(edges[:-1][filled] / window_s, sums[filled] / counts[filled])


def _edges(answers: int, window_s: float) -> np.ndarray | None:
    """Of the bins that so many answers are enough for, in seconds."""
    bins = min(BINS, answers // ANSWERS_PER_BIN)
    return np.linspace(0, window_s, bins + 1) if bins >= FEWEST_BINS else None


def _trend(starts: np.ndarray, values: np.ndarray) -> Trend:
    """Mann and Kendall's test of a series, and the slope of Theil and Sen, with the window as the unit of time."""
    if np.ptp(values) == 0:
        return Trend(change=0.0, p_value=1.0)  # where scipy says NaN
    from scipy.stats import kendalltau, theilslopes  # takes a second, which no command waits for that measures nothing

    # The median is 0 where most bins are empty: the server stopped.
    middle = np.median(values) or np.mean(values)
    return Trend(
        change=float(theilslopes(values, starts).slope / middle),
        p_value=float(kendalltau(starts, values).pvalue),
    )
