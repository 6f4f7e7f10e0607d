"""Two reports side by side: a real difference is found, a repeat is none, and what cannot be compared is refused."""

import numpy as np
import pytest
from made_reports import run, sweep

from detbench.errors import DetbenchError
from detbench.report.versus import Difference, advice, differences
from detbench.results.sweep import Sweep


def measured(rps: float, seed: int, rounds: int = 5, noise: float = 0.03, **changes: object) -> Sweep:
    """A sweep of `baseline` with one user, whose rounds are noisy."""
    values = rps * np.exp(np.random.default_rng(seed).normal(0, noise, rounds))
    return sweep(runs=[run("baseline", 1, float(value)) for value in values]).model_copy(update=changes)


def verdicts(a: Sweep, b: Sweep) -> dict[str, str]:
    return {each.figure: each.verdict for each in differences(a, b)}


def test_a_slowdown_of_a_tenth_is_found_with_five_rounds():
    found = [verdicts(measured(10, seed), measured(9, seed + 1000)) for seed in range(20)]
    assert sum(each["RPS"] == "worse" for each in found) >= 18
    assert sum(each["p50 (ms)"] == "worse" for each in found) >= 18
    assert verdicts(measured(9, 1), measured(10, 2))["RPS"] == "better"


def test_a_repeat_is_not_called_different():
    found = [verdicts(measured(10, seed), measured(10, seed + 1000)) for seed in range(20)]
    assert sum(each["RPS"] != "no difference" for each in found) <= 2


def test_one_round_cannot_tell_and_says_what_to_do():
    found = differences(measured(10, 1, rounds=1), measured(5, 2, rounds=1))
    assert {each.verdict for each in found} == {"cannot tell"}
    assert "--repeats 5" in advice(found)
    assert "one round" in found[0].cells()[5]
    assert advice(differences(measured(10, 1), measured(5, 2))) == ""


def test_numbers_of_replicas_are_not_mixed():
    runs = [
        run("baseline", 1, factor * replicas).model_copy(update={"replicas": replicas, "round": number})
        for number, factor in enumerate((10.0, 10.1, 9.9), start=1)
        for replicas in (1, 2)
    ]
    found = differences(sweep(runs=runs), sweep(runs=runs))
    assert [each.cells()[:4] for each in found if each.figure == "RPS"] == [
        ("baseline with 1 replica", "1 user", "RPS", "10"),
        ("baseline with 2 replicas", "1 user", "RPS", "20"),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"environment": {"device_name": "NVIDIA H100"}}, "two machines.*--other-machine"),
        ({"environment": {"cpu_count": 64}}, "two machines"),
        ({"settings": {"model_set": "uniform"}}, "different model sets: mixed and uniform"),
        ({"settings": {"images": 7}}, "different datasets: .* 7 images"),
        ({"weights": []}, "different weights"),
        ({"runs": []}, "in common"),
    ],
)
def test_what_is_not_alike_is_refused_in_a_line(change: dict, reason: str):
    a = measured(10, 1)
    update = {
        name: getattr(a, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    with pytest.raises(DetbenchError, match=reason):
        differences(a, a.model_copy(update=update))


def test_two_machines_are_compared_where_somebody_says_so():
    a = measured(10, 1)
    b = a.model_copy(update={"environment": a.environment.model_copy(update={"cpu_count": 64})})
    assert {each.verdict for each in differences(a, b, other_machine=True)} == {"no difference"}


def test_a_difference_is_printed_with_its_interval():
    cells = Difference("fastest", "4 users", "RPS", (10.0, 10.1, 9.9), (5.0, 5.1, 4.9)).cells()
    assert cells[:5] == ("fastest", "4 users", "RPS", "10", "4.999")
    assert cells[5].startswith("0.5× (0.4")
    assert cells[6] == "worse"
