"""How many times as fast: ratios of figures that were measured in several rounds, with their intervals.

Every interval is Student's, of logarithms, since a ratio's noise is multiplicative. Of 20,000 simulated sessions with a
noise of 3 % the intervals of 95 % held the true ratio in 95 % with 2, 3 and 5 rounds; in 90 to 97 % where the noise was
skewed, bimodal, or one round in ten lost 15 %. A bootstrap of the rounds held it in 50, 75 and 84 %, and a permutation
of the signs cannot be 95 % sure with fewer than 6 rounds (2 of 2^5 outcomes are 6 %).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# Of a ratio within one session, as the contract says.
PAIRED_CONFIDENCE = 0.95

# Of the comparison of two reports, which looks at many figures at once. 20 repeats of the same raise three false alarms
# or more with a probability of 7.5 % at a confidence of 95 %, and of 0.7 % at 98 %. With 5 rounds and 3 % of noise a
# slowdown of 10 % is found in 99 % and 96 % of simulated comparisons at least, so that the stricter one costs little.
REPORTS_CONFIDENCE = 0.98

# Of two reports. Rounds know the noise of their own session alone: on a quiet machine they agree to the last digit of
# the histogram, 0.1 %, and their interval has no width, while sessions differ more (levels of repetition: Kalibera and
# Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013). With sessions that spread by 1 % and rounds by 0.5 %,
# 4 % of repeats of the same raise a false alarm, and 47 % would with a limit of 1 %.
SMALLEST_DIFFERENCE = 0.03


@dataclass(frozen=True)
class Ratio:
    """A ratio, and the interval that holds the true one with a probability of `confidence`.

    `low` and `high` are None where there are too few rounds to know the noise.
    """

    value: float
    low: float | None
    high: float | None
    confidence: float

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3g}× (one round: no interval)"
        return f"{self.value:.3g}× ({self.low:.3g} to {self.high:.3g})"


def interleaved(implementations: Sequence[T], rounds: int) -> list[list[T]]:
    """The order of measurement within each round: A B, B A, A B, …

    What drifts steadily during a session (temperature, clocks) favours A in one round and B in the next.
    """
    return [list(implementations) if index % 2 == 0 else list(reversed(implementations)) for index in range(rounds)]


def paired_ratio(a_rounds: Sequence[float], b_rounds: Sequence[float]) -> Ratio:
    """The ratio a / b of two implementations of one session, with an interval of 95 %.

    It is the geometric mean of the rounds' ratios. What slows a whole round cancels.
    With 3 % of noise the interval is ±26 % wide with 2 rounds, ±9 % with 3, ±5 % with 5.

    Args:
        a_rounds: one figure per round (requests/s, or a median in ms), above 0.
        b_rounds: those of the other implementation, of the same rounds.

    Raises:
        ValueError: there is no round, the numbers of rounds differ, or a figure is not finite and above 0.
    """
    a, b = _logarithms(a_rounds), _logarithms(b_rounds)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} rounds do not make pairs")
    differences = a - b
    freedom = len(differences) - 1
    return _ratio(differences.mean(), _squares(differences), freedom, 1 / len(differences), PAIRED_CONFIDENCE)


def reports_ratio(a_rounds: Sequence[float], b_rounds: Sequence[float]) -> Ratio:
    """The ratio a / b of one figure in two reports, with an interval of 98 %.

    The rounds of two sessions are not pairs, and are taken to be equally noisy (Student's test of two samples). With so
    few rounds that finds more than Welch's test or Mann and Whitney's: 98, 90 and 92 % of slowdowns of 10 % at a level
    of 5 %, with 3 rounds against 5 and 3 % of noise. One report may have a single round, if the other has more.

    Args:
        a_rounds: one figure per round (requests/s, or a median in ms), above 0.
        b_rounds: those of the other report; there may be more or fewer.

    Raises:
        ValueError: a report has no round, or a figure is not finite and above 0.
    """
    a, b = _logarithms(a_rounds), _logarithms(b_rounds)
    freedom = len(a) + len(b) - 2
    return _ratio(a.mean() - b.mean(), _squares(a) + _squares(b), freedom, 1 / len(a) + 1 / len(b), REPORTS_CONFIDENCE)


def differs(a_rounds: Sequence[float], b_rounds: Sequence[float]) -> bool | None:
    """Whether a figure differs between two reports by more than the noise of their rounds.

    It does where the interval of `reports_ratio` leaves out 1, and the ratio is 3 % or more away from 1. What changes
    from session to session but not from round to round (a server process, the machine's other guests) is no noise to
    it, and raises false alarms where it is more than a percent or two.

    Returns:
        None where both reports have one round, which cannot say.

    Raises:
        ValueError: as `reports_ratio`.
    """
    ratio = reports_ratio(a_rounds, b_rounds)
    if ratio.low is None or ratio.high is None:
        return None
    return not ratio.low <= 1 <= ratio.high and abs(math.log(ratio.value)) >= math.log1p(SMALLEST_DIFFERENCE)


def _logarithms(rounds: Sequence[float]) -> np.ndarray:
    figures = np.asarray(rounds, dtype=np.float64)
    if len(figures) == 0 or not (np.isfinite(figures) & (figures > 0)).all():
        raise ValueError(f"a ratio needs a figure above 0 for each round, not {list(rounds)}")
    return np.log(figures)


def _squares(values: np.ndarray) -> float:
    return float(((values - values.mean()) ** 2).sum())


def _ratio(difference: float, squares: float, freedom: int, per_round: float, confidence: float) -> Ratio:
    """Student's interval of a difference of logarithms, whose variance is squares / freedom · per_round."""
    if freedom == 0:
        return Ratio(math.exp(difference), None, None, confidence)
    from scipy.stats import t  # takes a second, which no command waits for that measures nothing

    half = float(t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(squares / freedom * per_round)
    return Ratio(math.exp(difference), math.exp(difference - half), math.exp(difference + half), confidence)
