"""What each row of an ablation is worth, by hand."""

import math

import pytest

from detbench.measure.attribution import Row, gains

CHAIN = {"baseline": None, "a": "baseline", "b": "a", "c": "b"}
TREE = {"baseline": None, "a": "baseline", "b": "a", "c": "a", "fastest": None, "fastest-bf16": "fastest"}


def rows(**latencies: float) -> dict[str, Row]:
    """Rows by name; those called wrong_NAME are wrong, and `_` stands for a dash."""
    return {
        name.removeprefix("wrong_").replace("_", "-"): Row(latency, right=not name.startswith("wrong_"))
        for name, latency in latencies.items()
    }


def versus(measured: dict[str, Row], adds_to: dict[str, str | None]) -> dict[str, str | None]:
    return {name: gain.versus for name, gain in gains(measured, adds_to).items()}


def test_shares_are_of_logarithms_and_add_up_to_one_on_the_path_to_the_fastest_right_row():
    found = gains(rows(baseline=80, a=40, b=50, c=10), CHAIN)
    assert [gain.speedup for gain in found.values()] == [1, 2, 1.6, 8]
    assert [gain.factor for gain in found.values()] == [None, 2, 0.8, 5]
    assert found["baseline"].share is None
    assert found["a"].share == pytest.approx(math.log(2) / math.log(8))
    assert found["b"].share == pytest.approx(math.log(0.8) / math.log(8))
    assert sum(gain.share for name, gain in found.items() if name != "baseline") == pytest.approx(1)
    assert all(gain.on_path for gain in found.values())


def test_of_next_to_no_speed_up_there_are_no_shares():
    found = gains(rows(baseline=55.6, a=54.6, b=60.9), CHAIN)
    assert [gain.share for gain in found.values()] == [None] * 3
    assert found["b"].factor == pytest.approx(54.6 / 60.9)


def test_a_row_is_compared_with_the_one_that_it_adds_to_and_only_the_path_adds_up():
    found = gains(rows(baseline=80, a=40, b=10, c=20), TREE)
    assert [gain.versus for gain in found.values()] == [None, "baseline", "a", "a"]
    assert {name for name, gain in found.items() if gain.on_path} == {"baseline", "a", "b"}
    assert found["a"].share + found["b"].share == pytest.approx(1)
    assert found["c"].share == pytest.approx(1 / 3)  # what c would add in place of b


def test_a_row_that_adds_to_none_is_compared_with_the_fastest_right_row_before_it():
    assert versus(rows(baseline=80, a=40, b=10, c=20, fastest=8), TREE)["fastest"] == "b"
    assert versus(rows(baseline=80, a=40, wrong_b=10, c=20, fastest=8), TREE)["fastest"] == "c"
    # Not with what comes after it, however fast: its own successors build on it.
    assert versus(rows(baseline=80, fastest=8, fastest_bf16=1), TREE)["fastest"] == "baseline"
    found = gains(rows(baseline=80, a=40, b=10, c=20, fastest=8), TREE)
    assert {name for name, gain in found.items() if gain.on_path} == {"baseline", "a", "b", "fastest"}
    assert sum(gain.share for gain in found.values() if gain.on_path and gain.share is not None) == pytest.approx(1)


def test_rows_that_add_to_each_other_in_a_circle_are_compared_upwards_alone():
    circle = {"baseline": None, "a": "b", "b": "a", "c": "c"}
    assert versus(rows(baseline=80, a=40, b=20, c=10), circle) == {
        "baseline": None,
        "a": "baseline",
        "b": "a",
        "c": "b",
    }


def test_a_parent_that_was_not_measured_is_climbed_over():
    found = gains(rows(baseline=80, c=20), CHAIN)
    assert (found["c"].versus, found["c"].factor, found["c"].share) == ("baseline", 4, 1)
    # Up to what adds to none, whose own comparison takes its place.
    assert versus(rows(baseline=80, c=20, fastest_bf16=5), TREE)["fastest-bf16"] == "c"


def test_a_right_row_is_not_compared_with_a_wrong_one_but_a_wrong_one_is():
    """Whatever a wrong row skips would count against the right one that comes after it."""
    assert versus(rows(baseline=80, wrong_a=1, b=40), CHAIN)["b"] == "baseline"
    assert versus(rows(baseline=80, wrong_a=2, wrong_b=1), CHAIN)["b"] == "a"
    assert versus(rows(baseline=80, fastest=8, wrong_fastest_bf16=4), TREE)["fastest-bf16"] == "fastest"


def test_a_faster_row_that_is_wrong_is_not_what_shares_are_of():
    found = gains(rows(baseline=80, a=40, wrong_b=1), CHAIN)
    assert found["a"].share == 1
    assert found["b"].share == pytest.approx(math.log(40) / math.log(2))
    assert not found["b"].on_path


@pytest.mark.parametrize("latencies", [{"baseline": 80, "a": 90}, {"baseline": 80, "a": 80}, {"baseline": 80}, {}])
def test_where_nothing_is_faster_there_are_no_shares(latencies: dict[str, float]):
    assert {gain.share for gain in gains(rows(**latencies), CHAIN).values()} <= {None}


def test_without_a_right_baseline_there_are_factors_only():
    found = gains(rows(a=40, b=20), CHAIN)
    assert (found["a"].speedup, found["a"].factor, found["a"].share) == (None, None, None)
    assert (found["b"].speedup, found["b"].factor, found["b"].share) == (None, 2, None)
    found = gains(rows(wrong_baseline=80, a=40, b=20), CHAIN)
    assert (found["b"].speedup, found["b"].factor, found["b"].share) == (4, 2, None)
    assert not any(gain.on_path for gain in found.values())


def test_the_order_in_which_rows_were_measured_does_not_matter():
    measured = rows(baseline=80, a=40, b=10, c=20, fastest=8, wrong_fastest_bf16=4)
    backwards = dict(reversed(measured.items()))
    assert gains(measured, TREE) == gains(backwards, TREE)
