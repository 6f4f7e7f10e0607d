"""`folded`: as `channels-last`, with every batch norm folded into the convolution before it."""

from collections.abc import Callable

import torch
from effdet.efficientdet import EfficientDet

from detserver.implementations.channels_last import ChannelsLast
from detserver.postprocess import RawOutput
from detserver.recipes.folding import fold_batch_norm


class Folded(ChannelsLast):
    """Eager float32 networks without batch norms."""

    name = "folded"
    description = "as channels-last, with batch norms folded into the convolutions before them"
    technique = "batch norm folded"

    def prepared(self, model: EfficientDet) -> Callable[[torch.Tensor], RawOutput]:
        """See `Postprocess.prepared`."""
        return super().prepared(fold_batch_norm(model))
