"""`invalid`: a constant answer. It shows how fast everything around the models is, and that the comparison works."""

import numpy as np

from detserver.implementations.base import BaseModelImpl, DetectionOutput
from detserver.preprocess import PreparedImage


class Invalid(BaseModelImpl):
    """One constant detection per model, whatever the image."""

    name = "invalid"
    description = "constant output, no model: the ceiling of the server and the load test; its answers are wrong"
    exact = False

    def prepare(self) -> None:
        """Nothing: it has no weights."""

    def load(self) -> None:
        """Make the answer: one box of 100 x 100 pixels, score 0.5, class 1, for each model."""
        self._outputs = [
            DetectionOutput(
                spec.name,
                boxes=np.array([[0, 0, 100, 100]], dtype=np.float32),
                scores=np.array([0.5], dtype=np.float32),
                labels=np.array([1], dtype=np.int64),
            )
            for spec in self.model_set.models
        ]

    def predict(self, image: PreparedImage) -> list[DetectionOutput]:  # noqa: ARG002 (whatever the image)
        """See `BaseModelImpl.predict`."""
        return self._outputs
