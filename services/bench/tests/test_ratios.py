"""Ratios of rounds, and whether two reports differ: by hand, and in simulated sessions."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from detbench.measure.statistics.ratios import differs, interleaved, paired_ratio, reports_ratio

NOISE = 0.03


def rounds(rng: np.random.Generator, count: int, rate: float = 100.0) -> list[float]:
    """Requests per second of a system with 3 % of noise from round to round."""
    return (rate * rng.lognormal(0, NOISE, count)).tolist()


def share(seed: int, sessions: int, alarm: Callable[[np.random.Generator], bool | None]) -> float:
    rng = np.random.default_rng(seed)
    return sum(bool(alarm(rng)) for _ in range(sessions)) / sessions


def test_every_second_round_is_measured_in_the_other_order():
    assert interleaved(["a", "b"], 3) == [["a", "b"], ["b", "a"], ["a", "b"]]
    assert interleaved(["a", "b", "c"], 2) == [["a", "b", "c"], ["c", "b", "a"]]


def test_a_ratio_is_the_geometric_mean_of_the_rounds_with_students_interval():
    ratio = paired_ratio([110, 120, 130], [100, 100, 100])
    logs = np.log([1.1, 1.2, 1.3])
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)  # t of 97.5 % with 2 degrees of freedom, from any table
    assert ratio.value == pytest.approx(math.exp(logs.mean()))
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(logs.mean() - half), math.exp(logs.mean() + half)))
    assert str(ratio) == "1.2× (0.973 to 1.47)"


def test_the_inverse_of_a_ratio_has_the_inverse_interval():
    a, b = [10, 11, 9.5], [20, 21, 22]
    for ratio_of in (paired_ratio, reports_ratio):
        there, back = ratio_of(a, b), ratio_of(b, a)
        assert (there.value, there.low, there.high) == pytest.approx((1 / back.value, 1 / back.high, 1 / back.low))


def test_one_round_has_a_ratio_without_an_interval_and_says_so():
    for ratio in (paired_ratio([30], [20]), reports_ratio([30], [20])):
        assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(1.5), None, None)
        assert str(ratio) == "1.5× (one round: no interval)"
    assert differs([30], [20]) is None


def test_what_slows_a_whole_round_cancels():
    ratio = paired_ratio([100, 50, 80], [200, 100, 160])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(("a", "b"), [([], []), ([1, 0], [1, 1]), ([1, math.inf], [1, 1]), ([1, 2], [1])])
def test_rounds_without_a_figure_or_a_partner_have_no_ratio(a, b):
    with pytest.raises(ValueError, match="round"):
        paired_ratio(a, b)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_interval_of_a_ratio_holds_the_true_one_in_95_percent_of_sessions(count):
    def holds(rng: np.random.Generator) -> bool:
        ratio = paired_ratio(rounds(rng, count, 150), rounds(rng, count, 100))
        return ratio.low <= 1.5 <= ratio.high

    assert share(1, 1000, holds) == pytest.approx(0.95, abs=0.03)  # four standard errors of a share of 1,000


def test_a_slowdown_of_10_percent_is_found_in_five_rounds_with_3_percent_of_noise():
    assert share(2, 20, lambda rng: differs(rounds(rng, 5), rounds(rng, 5, 90))) >= 0.9
    assert share(3, 1000, lambda rng: differs(rounds(rng, 5), rounds(rng, 5, 90))) > 0.95


def test_repeats_of_the_same_raise_at_most_2_false_alarms_in_20():
    assert share(4, 20, lambda rng: differs(rounds(rng, 5), rounds(rng, 5))) <= 2 / 20
    assert share(5, 2000, lambda rng: differs(rounds(rng, 5), rounds(rng, 5))) == pytest.approx(0.02, abs=0.0125)


def test_sessions_that_spread_by_one_percent_around_quiet_rounds_raise_few_false_alarms():
    def alarm(rng: np.random.Generator) -> bool | None:
        a, b = (100 * rng.lognormal(0, 0.01) * rng.lognormal(0, 0.005, 5) for _ in range(2))
        return differs(a.tolist(), b.tolist())

    assert share(6, 1000, alarm) < 0.06


def test_rounds_that_are_equal_to_the_last_digit_differ_only_by_three_percent_or_more():
    assert differs([100.0] * 3, [100.1] * 3) is False
    assert differs([100.0] * 3, [104.0] * 3) is True


def test_a_report_with_one_round_is_compared_with_one_that_has_several():
    assert differs([100], [101, 98, 103, 97]) is False
    assert differs([50], [101, 98, 103, 97]) is True
