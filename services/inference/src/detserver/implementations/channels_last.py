"""`channels-last`: as `postprocess`, with the channels of a pixel side by side in memory."""

from collections.abc import Callable

import torch
from effdet.efficientdet import EfficientDet

from detserver.implementations.postprocess import Postprocess
from detserver.postprocess import RawOutput


class ChannelsLast(Postprocess):
    """Eager float32 networks in torch's `channels_last` memory format, which convolutions prefer."""

    name = "channels-last"
    description = "as postprocess, with networks and inputs in the memory format channels_last"
    technique = "channels_last"
    memory_format = torch.channels_last

    def prepared(self, model: EfficientDet) -> Callable[[torch.Tensor], RawOutput]:
        """See `Postprocess.prepared`."""
        return super().prepared(model.to(memory_format=torch.channels_last))
