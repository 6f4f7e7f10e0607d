"""Percentiles of latency with their intervals, and how many answers a percentile needs.

A percentile is the smallest latency that this share of the requests does not exceed (the nearest rank; numpy calls it
`inverted_cdf`). A request that failed counts as an infinite latency, so that a percentile may be infinite, and
p50 <= p90 <= p99 <= p99.9 <= the slowest always holds.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import ArrayLike

RANKS = (50.0, 90.0, 99.0, 99.9)

# Of the intervals, as the contract says.
CONFIDENCE = 0.95

# Of the number of requests that a percentile needs: MLPerf's, `confidence` in mlcommons/inference, loadgen/results.cc.
CERTIFICATE_CONFIDENCE = 0.99


@dataclass(frozen=True)
class Percentile:
    """One percentile of the latencies of a run.

    Attributes:
        rank: in percent, e.g. 99.9.
        value_ms: the percentile of the sample; infinite where it falls on a failure.
        low_ms: lower bound of the 95 % interval; 0 where the sample is too small to have one.
        high_ms: upper bound of the 95 % interval; infinite where it falls on a failure, or beyond the sample.
        certified: whether there are at least `needed` requests. If not, no sentence may be built on the value.
        needed: how many requests the percentile needs, see `answers_needed`.
    """

    rank: float
    value_ms: float
    low_ms: float
    high_ms: float
    certified: bool
    needed: int


def percentiles(latencies_ms: ArrayLike, failures: int = 0) -> tuple[Percentile, ...]:
    """The percentiles of `RANKS`, in their order.

    Args:
        latencies_ms: of each answer, in any order; at least 0, and infinite where it failed.
        failures: requests that failed and are not among `latencies_ms`.

    Raises:
        ValueError: a latency is negative or NaN, `failures` is negative, or there is no request at all.
    """
    values = np.sort(np.asarray(latencies_ms, dtype=np.float64))
    if not (values >= 0).all():
        raise ValueError("a latency is negative or not a number")
    return _percentiles(values, np.ones(len(values), dtype=np.int64), failures)


def histogram_percentiles(histogram: HdrHistogram, failures: int = 0) -> tuple[Percentile, ...]:
    """The percentiles of `RANKS`, in their order, to within the digits that the histogram keeps.

    A value is the highest one that the histogram cannot tell from the answer's, so never below it and never above
    `histogram.get_max_value()`. The ranks are counted here, because `get_value_at_percentile` rounds n·p to the nearest
    integer: of 16 answers it calls the 14th the p90, below which are 87.5 %.

    Args:
        histogram: latencies of the answers in microseconds.
        failures: requests that failed, which a histogram cannot hold.

    Raises:
        ValueError: `failures` is negative, or there is no request at all.
    """
    recorded = [
        (each.value_iterated_to, each.count_added_in_this_iter_step) for each in histogram.get_recorded_iterator()
    ]
    values_us, counts = np.array(recorded, dtype=np.int64).reshape(-1, 2).T
    return _percentiles(values_us / 1e3, counts, failures)


@cache
def answers_needed(rank: float) -> int:
    """How many requests certify a percentile: 64 for p90, 662 for p99, 6,636 for p99.9; 11 for p50.

    MLPerf's early stopping (`EarlyStopping` of the single stream in loadgen/results.cc, `find_min_passing` in
    loadgen/early_stopping.cc, both of mlcommons/inference; MLPerf Endpoints has the same): the smallest n for which a
    system that answers less than `rank` % in time shows at most one late answer of n with a probability below 1 %,
    P(Binomial(n, 1 - rank/100) <= 1) < 1 - 0.99.
    So the second late answer has come by then with a probability of 99 %, and the number of requests up to it is
    negatively binomial.

    Args:
        rank: in percent, above 0 and below 100.
    """
    from scipy.stats import nbinom  # takes a second, which everything that reads a result would wait for

    late = 2
    return late + int(nbinom.ppf(CERTIFICATE_CONFIDENCE, late, 1 - rank / 100))


def _percentiles(values_ms: np.ndarray, counts: np.ndarray, failures: int) -> tuple[Percentile, ...]:
    """Of ascending values, each of which was seen `counts` times, and of failures after them."""
    total = int(counts.sum()) + failures
    if failures < 0 or total == 0:
        raise ValueError("percentiles need a request, and failures cannot be fewer than none")
    # The k-th latency, counted from 1: 0 before the first and infinite after the last, which is where failures are.
    values = np.concatenate(([0.0], values_ms, [math.inf]))
    up_to = np.concatenate(([0], np.cumsum(counts)))

    def kth(k: int) -> float:
        return float(values[np.searchsorted(up_to, k)])

    def percentile(rank: float) -> Percentile:
        low, high = _interval_ranks(total, rank)
        needed = answers_needed(rank)
        # Rounded first: 1000 * 99.9 / 100 may be a hair more than 999.
        k = math.ceil(round(total * rank / 100, 6))
        return Percentile(rank, kth(k), kth(low), kth(high), certified=total >= needed, needed=needed)

    return tuple(percentile(rank) for rank in RANKS)


def _interval_ranks(total: int, rank: float) -> tuple[int, int]:
    """Which of `total` sorted latencies, counted from 1, bound the percentile with 95 % confidence.

    As many latencies are below the true percentile as a binomial distribution says, whatever theirs is, so each bound
    is missed with a probability of at most 2.5 % (Conover, Practical Nonparametric Statistics, section 3.2). They are
    those of scipy.stats.quantile_test(…).confidence_interval(0.95), which says NaN where the sample has no such rank.

    Returns:
        The lower one, 0 if there is none, and the upper one, `total` + 1 if there is none.
    """
    from scipy.stats import binom

    tail = (1 - CONFIDENCE) / 2
    return int(binom.ppf(tail, total, rank / 100)), int(binom.isf(tail, total, rank / 100)) + 1
