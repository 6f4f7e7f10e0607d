"""Where the device's time goes, counted by stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from detserver.machine.device import synchronize

DeviceStage = Literal["forward", "postprocess"]


class Stopwatch:
    """Counts seconds by stage, on one device.

    Args:
        device: what is waited for at the end of a stage, so that all work that was queued counts.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[DeviceStage, float] = {}

    @contextmanager
    def stage(self, stage: DeviceStage) -> Iterator[None]:
        """Count the time of the block as `stage`."""
        start = time.perf_counter()
        yield
        synchronize(self._device)
        self.count(stage, time.perf_counter() - start)

    def count(self, stage: DeviceStage, seconds: float) -> None:
        """Count `seconds` as `stage`, where a block is not what is to be timed."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def take(self) -> dict[DeviceStage, float]:
        """Seconds per stage since the last call; empty when nothing was counted."""
        seconds, self._seconds = self._seconds, {}
        return seconds
