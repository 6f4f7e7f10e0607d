"""Models with the same weights in several files, and a store of a test's own."""

from pathlib import Path

from detserver.models.model_sets import BUILT_IN, ModelSpec
from detserver.models.weights import WeightsStore

D0, D1 = BUILT_IN[0].models[:2]
SEVEN = ModelSpec("fish", "tf_efficientdet_d0", 7)


def store(data: Path, **options: object) -> WeightsStore:
    return WeightsStore(data / "weights", data / "cache", **({"seed": 0, "allow_download": False} | options))
