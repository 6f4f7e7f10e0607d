"""Percentiles, their intervals, and the number of answers that they need."""

import math

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from scipy.stats import quantile_test

from detbench.measure.statistics.percentiles import RANKS, answers_needed, histogram_percentiles, percentiles

# Higher than any latency of these tests, in µs; an hour, as the recorder has it, makes a walk ten times as long.
HIGHEST_US = 60_000_000


def lognormal(rng: np.random.Generator, size: int) -> np.ndarray:
    """100 ms, with a tail that is slower by half at p90."""
    return rng.lognormal(math.log(100), 0.35, size)


def bimodal(rng: np.random.Generator, size: int) -> np.ndarray:
    """One request in twenty waits for a batch of others."""
    return rng.normal(np.where(rng.random(size) < 0.05, 300, 100), 5)


def histogram_of(latencies_ms: np.ndarray) -> HdrHistogram:
    histogram = HdrHistogram(1, HIGHEST_US, 3)
    for latency_ms in latencies_ms:
        assert histogram.record_value(max(1, round(latency_ms * 1e3)))
    return histogram


def test_percentiles_are_the_nearest_ranks():
    values = [each.value_ms for each in percentiles(range(1000, 0, -1))]
    assert values == [500, 900, 990, 999]
    assert [each.value_ms for each in percentiles([7])] == [7] * 4
    assert [each.rank for each in percentiles([7])] == list(RANKS) == [50, 90, 99, 99.9]


def test_a_failure_counts_as_an_infinite_latency():
    answered = np.arange(1, 996)
    values = [each.value_ms for each in percentiles(answered, failures=5)]
    assert values == [500, 900, 990, math.inf]
    assert percentiles(answered, failures=5) == percentiles([*answered, *[math.inf] * 5])
    assert [each.value_ms for each in percentiles([], failures=3)] == [math.inf] * 4


def test_a_percentile_needs_a_request_and_latencies_that_are_numbers():
    for latencies, failures in [([], 0), ([-1.0], 0), ([1.0, math.nan], 0), ([1.0], -1)]:
        with pytest.raises(ValueError, match=r"request|latency"):
            percentiles(latencies, failures)
    with pytest.raises(ValueError, match="request"):
        histogram_percentiles(HdrHistogram(1, HIGHEST_US, 3))


@pytest.mark.parametrize("seed", range(8))
def test_percentiles_ascend_up_to_the_slowest(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        answered, failures = rng.integers(0, 300), rng.choice([0, 0, 1, 5, 200])
        if answered + failures == 0:
            continue
        latencies = np.round(lognormal(rng, answered), rng.integers(-1, 4))  # few digits: many are equal
        found = percentiles(latencies, failures)
        slowest = math.inf if failures else latencies.max()
        values = [each.value_ms for each in found]
        assert values == sorted(values)
        assert values[-1] <= slowest
        for each in found:
            assert 0 <= each.low_ms <= each.value_ms <= each.high_ms


def test_percentiles_of_a_histogram_are_those_of_its_latencies_to_three_digits():
    rng = np.random.default_rng(1)
    for size, failures in [(1, 0), (16, 0), (130, 1), (1500, 20)]:
        latencies = np.maximum(1, np.round(lognormal(rng, size) * 1e3)) / 1e3
        histogram = histogram_of(latencies)
        exact, found = percentiles(latencies, failures), histogram_percentiles(histogram, failures)
        for name in ("value_ms", "low_ms", "high_ms"):
            expected = [getattr(each, name) for each in exact]
            values = [getattr(each, name) for each in found]
            assert values == pytest.approx(expected, rel=1e-3)
            assert all(value >= other for value, other in zip(values, expected, strict=True))
        assert all(each.value_ms <= histogram.get_max_value() / 1e3 for each in found if failures == 0)
        assert histogram_percentiles(HdrHistogram.decode(histogram.encode()), failures) == found


def test_the_percentile_of_a_histogram_is_not_the_rank_that_hdrh_rounds_down_to():
    histogram = histogram_of(np.arange(1, 17) / 1e3)
    assert histogram.get_value_at_percentile(90) == 14  # 87.5 % of the answers
    assert histogram_percentiles(histogram)[1].value_ms == 0.015


def test_percentiles_of_merged_histograms_are_those_of_all_answers():
    rng = np.random.default_rng(2)
    latencies = bimodal(rng, 900)
    merged = histogram_of(latencies[:200])
    merged.add(histogram_of(latencies[200:]))
    assert histogram_percentiles(merged, 3) == histogram_percentiles(histogram_of(latencies), 3)


def test_intervals_are_those_of_scipy_and_open_where_the_sample_has_no_bound():
    rng = np.random.default_rng(3)
    for size in [1, 5, 6, 30, 64, 400, 2000, 8000]:
        latencies = lognormal(rng, size)
        for each in percentiles(latencies):
            bounds = quantile_test(latencies, p=each.rank / 100).confidence_interval(0.95)
            assert each.low_ms == (0 if math.isnan(bounds.low) else bounds.low)
            assert each.high_ms == (math.inf if math.isnan(bounds.high) else bounds.high)


@pytest.mark.parametrize("distribution", [lognormal, bimodal])
def test_intervals_hold_the_true_percentile_in_at_least_92_percent_of_runs(distribution):
    rng = np.random.default_rng(4)
    truth = np.percentile(distribution(rng, 1_000_000), RANKS)
    held = np.zeros(len(RANKS))
    for _ in range(200):
        for index, each in enumerate(percentiles(distribution(rng, rng.integers(300, 2000)))):
            held[index] += each.low_ms <= truth[index] <= each.high_ms
    assert (held >= 0.92 * 200).all(), held


def test_the_answers_that_a_percentile_needs_are_those_of_mlperf():
    assert [answers_needed(rank) for rank in (90, 99, 99.9)] == [64, 662, 6636]


def test_a_percentile_is_certified_by_as_many_requests_as_it_needs():
    assert [each.certified for each in percentiles(np.ones(661))] == [True, True, False, False]
    assert [each.certified for each in percentiles(np.ones(660), failures=2)] == [True, True, True, False]
    assert [each.needed for each in percentiles([1])] == [11, 64, 662, 6636]
