"""When an open-loop load sends its requests, and which photo each one carries: pure functions of a seed and a number.

There is no clock in here, no socket and no gevent: a generator asks for its next slot, and waits for the slot's time by
itself. A schedule is either a pattern of arrivals (`Constant`, `Poisson`, `Gamma`) at a rate that may change in steps
(`Paced`), or the recorded times of a file (`Trace`). `schedule_of` makes one from the words of a command line.

The random numbers of a pattern come in order from one stream, so a slot's time does not depend on who asks, or how far.
One seed gives the same pattern at every rate, stretched. numpy may change its streams between versions (NEP 19).
"""

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detbench.errors import DetbenchError

ARRIVALS = ("constant", "poisson", "gamma")


class Slot(NamedTuple):
    """One request to send: its number in the whole schedule, from 0, and its time in seconds from the load's start."""

    number: int
    time_s: float


class Schedule(ABC):
    """Arrival times of an open-loop load. `str()` says its kind and its rate, for a person to read."""

    @property
    @abstractmethod
    def duration_s(self) -> float:
        """Seconds after which no request arrives any more; infinity where there is no end."""

    @abstractmethod
    def times_s(self) -> Iterator[float]:
        """Arrival times of all requests, ascending, in seconds from the start; lazily, for there may be no end."""

    def slots(self, worker: int = 0, workers: int = 1) -> Iterator[Slot]:
        """The slots that are worker `worker`'s of `workers`: those with the numbers worker, worker + workers, …

        The slots of all workers together are the schedule. Each worker goes through all arrivals to get to its own,
        which costs less than a microsecond an arrival.
        """
        return map(Slot._make, itertools.islice(enumerate(self.times_s()), worker, None, workers))

    def between(self, start_s: float, end_s: float) -> npt.NDArray[np.float64]:
        """Arrival times t with start_s <= t < end_s, ascending, in seconds; shape (arrivals,).

        `end_s` must be finite unless the schedule has an end.
        """
        later = itertools.dropwhile(lambda time_s: time_s < start_s, self.times_s())
        return np.fromiter(itertools.takewhile(lambda time_s: time_s < end_s, later), dtype=np.float64)


@dataclass(frozen=True)
class Constant:
    """Equal gaps; the first arrival is at 0."""

    def units(self) -> Iterator[float]:
        """Arrivals at a mean rate of 1."""
        return itertools.count(0.0)

    def __str__(self) -> str:
        return "constant"


@dataclass(frozen=True)
class Poisson:
    """Independent, exponentially distributed gaps, one of them before the first arrival.

    As in the Server scenario of MLPerf LoadGen (ScheduleDistribution in loadgen.cc), which sends the first one at 0.
    """

    seed: int

    def units(self) -> Iterator[float]:
        """Arrivals at a mean rate of 1."""
        return _sums(np.random.default_rng(self.seed).standard_exponential)

    def __str__(self) -> str:
        return "Poisson"


@dataclass(frozen=True)
class Gamma:
    """Independent, gamma distributed gaps of shape `burstiness` and of scale 1 / (rate * burstiness).

    The mean gap is 1 / rate whatever the burstiness, and the coefficient of variation 1 / sqrt(burstiness): 1 is
    Poisson, less comes in bursts, more is more even. The parameter is `--burstiness` of `vllm bench serve` (get_request
    in vllm/benchmarks/serve.py) and `--arrival-smoothness` of AIPerf (docs/tutorials/arrival-patterns.md). vLLM then
    stretches the gaps so that the last of a known number of requests arrives at number / rate; here the number is open.
    """

    burstiness: float
    seed: int

    def units(self) -> Iterator[float]:
        """Arrivals at a mean rate of 1."""
        random = np.random.default_rng(self.seed)
        return _sums(lambda count: random.standard_gamma(self.burstiness, count) / self.burstiness)

    def __str__(self) -> str:
        return f"gamma of burstiness {self.burstiness:g}"


class Step(NamedTuple):
    """A rate in requests per second, and for how many seconds it holds."""

    duration_s: float
    rate: float


@dataclass(frozen=True)
class Paced(Schedule):
    """A pattern at a rate that changes in steps; a load of one rate has one step, without an end.

    The pattern's own time passes at each step's rate (time change: Çinlar, Introduction to Stochastic Processes, 1975,
    chapter 4), so that Poisson stays Poisson. The pattern goes on where a step ends: a gap that has begun is finished
    at the next rate, and no two arrivals of a constant pattern meet where two steps do.
    """

    pattern: Constant | Poisson | Gamma
    steps: tuple[Step, ...]

    @property
    def duration_s(self) -> float:
        """Sum of the steps' durations, in seconds."""
        return sum(step.duration_s for step in self.steps)

    def times_s(self) -> Iterator[float]:
        """Arrival times of all requests, ascending, in seconds from the start."""
        units = self.pattern.units()
        unit = next(units)
        start_s = passed = 0.0
        for step in self.steps:
            while (since_s := max(0.0, unit - passed) / step.rate) < step.duration_s:
                yield start_s + since_s
                unit = next(units)
            start_s += step.duration_s
            # 1.1 s at 50 are 55.00000000000001 units; unless that is rounded, the last step has one arrival too many.
            passed = round(passed + step.duration_s * step.rate, 9)

    def __str__(self) -> str:
        if self.duration_s == math.inf:
            return f"{self.steps[0].rate:g} requests/s, {self.pattern}"
        return (
            f"{', '.join(f'{step.duration_s:g} s at {step.rate:g}' for step in self.steps)} requests/s, {self.pattern}"
        )


@dataclass(frozen=True)
class Trace(Schedule):
    """Arrival times that were read from a file: seconds from the load's start, ascending, one at least."""

    path: Path
    times: tuple[float, ...] = field(repr=False)

    @property
    def duration_s(self) -> float:
        """Time of the last arrival, in seconds."""
        return self.times[-1]

    def times_s(self) -> Iterator[float]:
        """Arrival times of all requests, ascending, in seconds from the start."""
        return iter(self.times)

    def __str__(self) -> str:
        return f"{len(self.times):,} requests in {self.duration_s:g} s, as in {self.path}"


def schedule_of(
    rate: float | None = None,
    arrivals: str | None = None,
    burstiness: float | None = None,
    steps: str | None = None,
    trace: Path | None = None,
    seed: int = 0,
) -> Schedule:
    """The schedule that the options --rate, --arrivals, --burstiness, --steps, --trace and --seed describe.

    Args:
        rate: requests per second.
        arrivals: one of ARRIVALS; Poisson where it is None, as in LoadGen, vLLM and AIPerf.
        burstiness: see `Gamma`.
        steps: such as "10s:5,1.5m:20": durations in s, m or h, each with a rate in requests per second.
        trace: see `read_trace`.
        seed: a whole number from 0.

    Raises:
        DetbenchError: options contradict each other, a number is out of range, or the trace cannot be read.
    """
    loads = {"--rate": rate, "--steps": steps, "--trace": trace}
    named = [option for option, value in loads.items() if value is not None]
    if len(named) > 1:
        raise DetbenchError(f"{' and '.join(named)} exclude each other; name one of them")
    if seed < 0:
        raise DetbenchError(f"--seed is {seed}; it must be a whole number from 0")
    if trace is not None:
        if arrivals is not None or burstiness is not None:
            raise DetbenchError("--trace has arrivals of its own; leave out --arrivals and --burstiness")
        return read_trace(trace)
    pattern = _pattern_of(arrivals, burstiness, seed)
    if steps is not None:
        return Paced(pattern, tuple(_step_of(text.strip()) for text in steps.split(",")))
    if rate is None:
        raise DetbenchError("an open loop needs arrivals; name --rate, --steps or --trace")
    return Paced(pattern, (Step(math.inf, _positive("--rate", rate)),))


def read_trace(path: Path) -> Trace:
    """Read arrival times: one a line, in seconds from the load's start, ascending; equal ones are fine.

    Blank lines are left out, what follows a # is a comment, and a first line without a digit is a header.

    Raises:
        DetbenchError: the file cannot be read, holds no time, a line that is none or is out of order, or begins more
            than a day after the start.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DetbenchError(f"{path} cannot be read ({error.strerror}); name a file with {_FORMAT}") from error
    except UnicodeDecodeError as error:
        raise DetbenchError(f"{path} is no text; name a file with {_FORMAT}") from error
    texts = [(number, line.split("#")[0].strip()) for number, line in enumerate(lines, start=1)]
    texts = [(number, text) for number, text in texts if text]
    if texts and _is_header(texts[0][1]):
        del texts[0]
    if not texts:
        raise DetbenchError(f"{path} holds no arrival time; name a file with {_FORMAT}")
    times: list[float] = []
    for number, text in texts:
        time_s = _float(text)
        if time_s is None or not 0 <= time_s < math.inf:
            raise DetbenchError(f"{path}, line {number}: {text[:40]!r} is no arrival time; write {_FORMAT}")
        if times and time_s < times[-1]:
            raise DetbenchError(f"{path}, line {number}: {time_s} comes after {times[-1]}; sort the lines by time")
        times.append(time_s)
    if times[0] > _LATEST_START_S:
        raise DetbenchError(f"{path} begins at {times[0]:.0f} s, after more than a day; subtract that from every line")
    return Trace(path, tuple(times))


def photo_of(number: int, photos: int, seed: int) -> int:
    """Which of `photos` photos slot `number` sends, from 0.

    Every pass over the photos is a permutation of its own: after any number of slots, each photo was sent as often as
    each other one, to within one.
    """
    return _order(photos, seed, number // photos)[number % photos]


_BLOCK = 1024  # gaps drawn at a time; the size changes no number
_LATEST_START_S = 86_400.0  # what is later is the time of day or of the calendar
_FORMAT = "one number a line: seconds from the start, 0 or more"
_STEP = re.compile(r"(\d+(?:\.\d+)?)([smh]):(\d+(?:\.\d+)?)", re.ASCII)
_UNITS_S = {"s": 1, "m": 60, "h": 3600}


def _sums(draw: Callable[[int], npt.NDArray[np.float64]]) -> Iterator[float]:
    """Running sums of the gaps that `draw(count)` gives, without an end."""
    blocks = (draw(_BLOCK).tolist() for _ in itertools.count())
    return itertools.accumulate(itertools.chain.from_iterable(blocks))


def _pattern_of(arrivals: str | None, burstiness: float | None, seed: int) -> Constant | Poisson | Gamma:
    if arrivals is not None and arrivals not in ARRIVALS:
        raise DetbenchError(f"--arrivals {arrivals!r} is unknown; choose from {', '.join(ARRIVALS)}")
    if arrivals == "gamma":
        if burstiness is None:
            raise DetbenchError("--arrivals gamma needs --burstiness: 1 is Poisson, less comes in bursts")
        return Gamma(_positive("--burstiness", burstiness), seed)
    if burstiness is not None:
        raise DetbenchError("--burstiness shapes gamma arrivals alone; add --arrivals gamma, or leave it out")
    return Constant() if arrivals == "constant" else Poisson(seed)


def _step_of(text: str) -> Step:
    match = _STEP.fullmatch(text)
    if match is None:
        raise DetbenchError(f"--steps: {text!r} is no step; write DURATION:RATE, such as 10s:5, 1.5m:20 or 1h:0.5")
    duration, unit, rate = match.groups()
    duration_s = _positive(f"--steps: the duration of {text!r}", float(duration) * _UNITS_S[unit])
    return Step(duration_s, _positive(f"--steps: the rate of {text!r}", float(rate)))


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise DetbenchError(f"{name} is {value:g}; it must be a finite number above 0")
    return value


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_header(text: str) -> bool:
    return _float(text) is None and not any(character.isdigit() for character in text)


@lru_cache(maxsize=4)
def _order(photos: int, seed: int, passes: int) -> tuple[int, ...]:
    """Order of the photos after `passes` passes; a spawn key keeps it independent of the arrivals of the same seed."""
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(passes,)))
    return tuple(random.permutation(photos).tolist())
