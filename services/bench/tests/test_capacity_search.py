"""The search for a capacity, against servers that are played."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from detbench.measure.capacity_search import Ask, Bounds, Tried, bracket, next_step
from detbench.results.capacity import Ending, Outcome

Played = Callable[[Ask], Outcome]


def searched(server: Played, bounds: Bounds, before: tuple[Tried, ...] = ()) -> tuple[list[Tried], Ending]:
    """All probes of a search, each of which takes two seconds more than its duration, and what ended it."""
    tried = list(before)
    while isinstance(step := next_step(tried, bounds), Ask):
        tried.append(Tried(step.rate, server(step), step.confirms, step.duration_s + 2.0))
    return tried, step


def ends(tried: list[Tried]) -> tuple[Tried | None, Tried | None]:
    low, high = bracket(tried)
    return None if low is None else tried[low], None if high is None else tried[high]


def up_to(capacity: float) -> Played:
    return lambda step: "passed" if step.rate <= capacity else "failed"


@pytest.mark.parametrize("start", [1.0, 20.0, 45.0, 52.0, 400.0, 2_000.0])
def test_a_known_capacity_is_enclosed_and_both_ends_are_confirmed(start: float):
    bounds = Bounds(start=start, requests=662, max_duration_s=1_000.0)
    tried, ended_by = searched(up_to(50.0), bounds)
    passed, failed = ends(tried)
    assert passed is not None
    assert failed is not None
    assert ended_by == "precision"
    assert passed.rate <= 50.0 < failed.rate <= 1.02 * passed.rate
    assert passed.confirms
    assert failed.confirms
    probes = [(each.rate, each.confirms) for each in tried]
    assert len(set(probes)) == len(probes), "none is made twice"


@pytest.mark.parametrize("cut", range(9))
def test_a_search_that_was_broken_off_goes_on_as_it_would_have(cut: int):
    bounds = Bounds(start=20.0, requests=662, max_duration_s=600.0)
    whole, ended_by = searched(up_to(50.0), bounds)
    assert searched(up_to(50.0), bounds, tuple(whole[:cut])) == (whole, ended_by)


def test_a_server_that_never_passes_has_none_after_a_few_probes():
    bounds = Bounds(start=80.0, requests=662, max_duration_s=300.0)
    tried, ended_by = searched(lambda step: "failed", bounds)
    assert (ended_by, ends(tried)[0]) == ("none", None)
    assert tried[-1].rate == bounds.lowest_rate == 1.6
    assert len(tried) <= 6


def test_a_server_that_always_passes_is_tried_up_to_the_highest_rate_or_until_the_time_is_over():
    tried, ended_by = searched(
        lambda step: "passed", Bounds(start=20.0, requests=64, max_duration_s=300.0, max_rate=90.0)
    )
    assert (ended_by, tried[-1].rate, tried[-1].confirms) == ("max-rate", 90.0, True)
    tried, ended_by = searched(lambda step: "passed", Bounds(start=20.0, requests=64, max_duration_s=300.0))
    passed, failed = ends(tried)
    assert passed is not None
    assert (ended_by, passed.confirms, failed) == ("time", True, None)


def test_one_unlucky_failure_does_not_end_it():
    unlucky = iter([True])
    tried, ended_by = searched(
        lambda step: "failed" if next(unlucky, False) else up_to(50.0)(step),
        Bounds(start=40.0, requests=64, max_duration_s=900.0, precision=0.03),
    )
    passed, failed = ends(tried)
    assert passed is not None
    assert failed is not None
    assert (tried[0].rate, tried[0].outcome, ended_by) == (40.0, "failed", "precision")
    assert passed.rate <= 50.0 < failed.rate <= 1.03 * passed.rate


def test_one_lucky_pass_is_overruled_by_the_longer_probe():
    tried, ended_by = searched(
        lambda step: "passed" if step.rate <= (50.0 if step.confirms else 53.0) else "failed",
        Bounds(start=40.0, requests=64, max_duration_s=900.0, precision=0.03),
    )
    passed, _ = ends(tried)
    assert passed is not None
    assert (passed.confirms, ended_by) == (True, "precision")
    assert 48.5 <= passed.rate <= 50.0


def test_an_unusable_probe_is_made_again_once_and_then_bounds_the_search_from_above():
    once = iter([True])
    tried, ended_by = searched(
        lambda step: "unusable" if next(once, False) else up_to(50.0)(step),
        Bounds(start=40.0, requests=64, max_duration_s=600.0),
    )
    assert [(each.rate, each.outcome) for each in tried[:2]] == [(40.0, "unusable"), (40.0, "passed")]
    assert ended_by == "precision"
    tried, ended_by = searched(
        lambda step: "unusable" if step.rate > 30.0 else "passed", Bounds(start=20.0, requests=64, max_duration_s=600.0)
    )
    passed, failed = ends(tried)
    assert passed is not None
    assert failed is not None
    assert (ended_by, failed.outcome, passed.confirms) == ("generator", "unusable", True)
    assert passed.rate <= 30.0 < failed.rate
    unusable = [each for each in tried if each.outcome == "unusable"]
    assert all(one.rate == other.rate for one, other in zip(unusable[::2], unusable[1::2], strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_no_search_takes_longer_than_it_may_and_none_ends_unconfirmed_without_need(seed: int):
    random = np.random.default_rng(seed)
    capacity = 10 ** random.uniform(-1, 3)
    bounds = Bounds(
        start=capacity * 10 ** random.uniform(-1.5, 1.5),
        requests=int(random.choice([11, 64, 662, 6_636])),
        max_duration_s=random.uniform(30, 900),
    )
    chance = random.uniform(0.0, 0.1)

    def noisy(step: Ask) -> Outcome:
        if random.random() < chance:
            return random.choice(["failed", "unusable", "passed"])
        return up_to(capacity)(step)

    tried, _ = searched(noisy, bounds)
    assert sum(each.took_s for each in tried) <= bounds.max_duration_s
    assert len(tried) <= bounds.most_probes
    assert all(each.rate >= bounds.lowest_rate for each in tried)


def queue_percentile(random: np.random.Generator, rate: float, duration_s: float, service_s: float) -> float:
    """p90 of the latencies of Poisson arrivals at a server that takes `service_s` for each, by Lindley's recursion."""
    gaps_s = random.exponential(1 / rate, max(1, random.poisson(rate * duration_s)))
    steps = np.concatenate(([0.0], np.cumsum(service_s - gaps_s[1:])))
    waits_s = steps - np.minimum.accumulate(steps)
    return float(np.quantile(waits_s + service_s, 0.9, method="inverted_cdf"))


def waits_longer(rate: float, service_s: float, wait_s: float) -> float:
    """Probability that a request of M/D/1 waits longer (Erlang, 1909; Crommelin, 1932)."""
    load = rate * service_s
    terms = (
        (rate * (k * service_s - wait_s)) ** k / math.factorial(k) * math.exp(-rate * (k * service_s - wait_s))
        for k in range(int(wait_s / service_s) + 1)
    )
    return 1 - (1 - load) * sum(terms)


def m_d_1_capacity(service_s: float, limit_s: float) -> float:
    """The rate at which p90 is the limit."""
    low, high = 0.0, 1 / service_s
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if waits_longer(middle, service_s, limit_s - service_s) < 0.1 else (low, middle)
    return low


def test_of_a_queue_with_poisson_arrivals_nearly_every_search_ends_within_five_percent():
    service_s, limit_s = 0.005, 0.03
    expected = m_d_1_capacity(service_s, limit_s)
    found = []
    for seed in range(40):
        random = np.random.default_rng(seed)

        def queue(step: Ask, random: np.random.Generator = random) -> Outcome:
            p90_s = queue_percentile(random, step.rate, step.duration_s, service_s)
            return "passed" if p90_s <= limit_s else "failed"

        tried, _ = searched(queue, Bounds(start=0.7 / service_s, requests=64, max_duration_s=300.0))
        passed, _ = ends(tried)
        assert passed is not None
        found.append(passed.rate / expected)
    assert np.median(found) == pytest.approx(1.0, abs=0.03)
    assert np.mean(np.abs(np.array(found) - 1) <= 0.05) >= 0.9


def test_the_capacity_by_the_formula_is_that_of_a_long_simulation():
    rate = m_d_1_capacity(0.01, 0.03)
    assert queue_percentile(np.random.default_rng(1), rate, 20_000.0, 0.01) == pytest.approx(0.03, rel=0.02)


def test_short_probes_of_few_requests_only_find_a_wide_bracket_which_longer_ones_halve():
    bounds = Bounds(start=0.4, requests=64, max_duration_s=1_200.0)
    tried, ended_by = searched(up_to(0.53), bounds)
    short = [each.rate for each in tried if not each.confirms]
    widest = 1 + 1 / math.sqrt(0.4 * bounds.probe_s(0.4))
    assert min(later / earlier for earlier, later in pairwise(sorted(short))) > math.sqrt(widest)
    passed, failed = ends(tried)
    assert passed is not None
    assert failed is not None
    assert ended_by in ("precision", "time")
    assert passed.confirms
    assert passed.rate <= 0.53 < failed.rate < 1.1 * passed.rate


def test_steps_upwards_grow_until_one_fails():
    tried, _ = searched(up_to(5_000.0), Bounds(start=1.0, requests=11, max_duration_s=900.0))
    upwards = [each.rate for each in tried[: [each.outcome for each in tried].index("failed") + 1]]
    steps = [later / earlier for earlier, later in pairwise(upwards)]
    assert steps[:3] == pytest.approx([1.25, 1.25**2, 1.25**4], rel=1e-3)
    assert max(steps) == pytest.approx(4.0, rel=1e-3)


@pytest.mark.parametrize("precision", [0.001, 0.02, 1.0])
def test_above_a_rate_that_failed_by_bad_luck_steps_begin_small_and_grow(precision: float):
    unlucky = (Tried(40.0, "failed", False, 5.0), Tried(39.9, "passed", True, 9.0), Tried(40.0, "passed", True, 9.0))
    bounds = Bounds(start=40.0, requests=64, max_duration_s=3_000.0, precision=precision)
    tried, _ = searched(lambda step: "passed", bounds, unlucky)
    rates = [each.rate for each in tried[2:] if not (each.confirms and each.rate > 40.0)]
    steps = [later / earlier for earlier, later in pairwise(rates)]
    assert steps[0] == pytest.approx(min(1.25, (1 + precision) ** 2), rel=1e-3)
    assert steps[-1] == pytest.approx(1.25, rel=1e-3)
    assert all(later >= 0.999 * earlier for earlier, later in pairwise(steps))
