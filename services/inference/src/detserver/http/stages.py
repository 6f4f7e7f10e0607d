"""Where the time of a request goes."""

import time
from typing import Literal, get_args

Stage = Literal["receive", "wait", "decode", "preprocess", "queue", "forward", "postprocess", "serialise"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Stages:
    """The stages of one request: each begins where the one before it ended, so that they add up to the whole.

    Args:
        started: when the request's headers were there, by `time.perf_counter`.
    """

    def __init__(self, started: float) -> None:
        self._started = self._ended = started
        self.seconds: dict[Stage, float] = {}

    def end(self, stage: Stage, at: float | None = None) -> None:
        """Let `stage` end `at` a time by `time.perf_counter`; now, where none is given."""
        ended = time.perf_counter() if at is None else at
        self.seconds[stage] = ended - self._ended
        self._ended = ended

    def milliseconds(self) -> dict[Stage, float]:
        """What each stage has taken."""
        return {stage: 1e3 * seconds for stage, seconds in self.seconds.items()}

    @property
    def total_s(self) -> float:
        """Seconds from the start to the end of the last stage."""
        return self._ended - self._started
