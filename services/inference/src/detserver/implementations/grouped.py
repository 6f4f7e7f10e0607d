"""`grouped`: the models of one architecture as one network of grouped convolutions."""

from collections.abc import Sequence

import torch

from detserver.models.model_sets import ModelSet
from detserver.recipes import compiling, stacking
from detserver.recipes.choice import ChosenImpl, Variant, grouped_variants


class Grouped(ChosenImpl):
    """See `detserver.recipes.grouping`; memory format and the way of 1x1 convolutions are chosen by timing."""

    name = "grouped"
    description = "models of one architecture as one network whose every convolution is of all; on a GPU torch.compile"
    technique = "stacking"
    exact = True

    @classmethod
    def compiles(cls, device: torch.device) -> bool:
        """See `BaseModelImpl.compiles`; on a CPU it takes minutes."""
        return device.type == "cuda" and compiling.unavailable_reason(device) is None

    @classmethod
    def unsupported_reason(cls, model_set: ModelSet) -> str | None:
        """See `BaseModelImpl.unsupported_reason`."""
        return stacking.unsupported_reason(model_set)

    def batch_sizes(self) -> Sequence[int]:
        """See `NetworkImpl.batch_sizes`."""
        return (1, 4, 16) if self.compiles(self.device) else ()

    def variants(self) -> Sequence[Variant]:
        """See `ChosenImpl.variants`."""
        return grouped_variants(self.model_set)
