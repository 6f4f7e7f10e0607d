"""What a model has done since the server started, in the form of Triton's statistics extension."""

import time
from collections import deque
from typing import Any

from detserver.engine.work import Answer, Key
from detserver.http.oip.models import VERSION
from detserver.http.stages import Stage, Stages

# Which of our stages are which of Triton's.
_PARTS: dict[str, tuple[Stage, ...]] = {
    "queue": ("wait", "queue"),
    "compute_input": ("decode", "preprocess"),
    "compute_infer": ("forward", "postprocess"),
    "compute_output": ("serialise",),
}
_OF_A_BATCH = tuple(part for part in _PARTS if part != "queue")

# Answers of one batch come one after the other, but for those of the batch before it that take longer to write.
_RECENT_BATCHES = 8


class _Durations:
    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += seconds

    def shown(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(1e9 * self.seconds)}


class _Batches:
    """Of one size; every figure is of the batch, not of each of its requests."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = dict.fromkeys(_OF_A_BATCH, 0.0)

    def shown(self, size: int) -> dict[str, Any]:
        figures = {part: {"count": self.count, "ns": round(1e9 * self.seconds[part])} for part in _OF_A_BATCH}
        return {"batch_size": size, **figures}


class _Model:
    def __init__(self) -> None:
        self.last_s = 0.0
        self.figures = {name: _Durations() for name in ("success", "fail", *_PARTS)}
        self.batches: dict[int, _Batches] = {}
        self._recent: deque[float] = deque(maxlen=_RECENT_BATCHES)

    def answered(self, stages: Stages, answer: Answer) -> None:
        seconds = {part: sum(stages.seconds[stage] for stage in of) for part, of in _PARTS.items()}
        self.figures["success"].add(stages.total_s)
        for part, each_s in seconds.items():
            self.figures[part].add(each_s)
        batches = self.batches.setdefault(answer.batch_size, _Batches())
        for part in ("compute_input", "compute_output"):
            batches.seconds[part] += seconds[part]
        if answer.started not in self._recent:
            self._recent.append(answer.started)
            batches.count += 1
            batches.seconds["compute_infer"] += seconds["compute_infer"]
        self.last_s = time.time()


class Statistics:
    """Counts requests of all protocols, by implementation and model set. The event loop's thread alone calls it."""

    def __init__(self) -> None:
        self._models: dict[Key, _Model] = {}

    def answered(self, key: Key, stages: Stages, answer: Answer) -> None:
        """Count a request that was answered."""
        self._models.setdefault(key, _Model()).answered(stages, answer)

    def failed(self, key: Key, seconds: float) -> None:
        """Count a request to a model that there is, and that had no detections for an answer."""
        self._models.setdefault(key, _Model()).figures["fail"].add(seconds)

    def shown(self, key: Key, model: str) -> dict[str, Any]:
        """The statistics of one model; `model` is its name."""
        known = self._models.get(key) or _Model()
        nothing = {"count": 0, "ns": 0}
        return {
            "name": model,
            "version": VERSION,
            "last_inference": round(1e3 * known.last_s),
            "inference_count": known.figures["success"].count,
            "execution_count": sum(batches.count for batches in known.batches.values()),
            "inference_stats": {name: figure.shown() for name, figure in known.figures.items()}
            | {"cache_hit": nothing, "cache_miss": nothing},
            "batch_stats": [batches.shown(size) for size, batches in sorted(known.batches.items())],
        }
