"""`postprocess`: `baseline`'s networks, and post-processing of all models of a batch at once."""

from collections.abc import Callable

import torch
from effdet.efficientdet import EfficientDet

from detserver.models.configuration import input_config
from detserver.postprocess import RawOutput
from detserver.recipes.network import Forward, NetworkImpl, one_after_the_other


class Postprocess(NetworkImpl):
    """Eager float32 networks one after the other; see `detserver.postprocess` for what it is about."""

    name = "postprocess"
    description = "eager fp32, one model after the other; post-processing of all models and images at once"
    technique = "batched post-processing"
    exact = True

    def build(self, models: list[EfficientDet]) -> Forward:
        """See `NetworkImpl.build`."""
        return one_after_the_other([(input_config(model.config), self.prepared(model)) for model in models])

    def prepared(self, model: EfficientDet) -> Callable[[torch.Tensor], RawOutput]:
        """What runs in place of a network; a step of its own in each subclass."""
        network: Callable[[torch.Tensor], RawOutput] = model
        return network
