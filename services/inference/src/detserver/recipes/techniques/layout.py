"""`layout=channels_last`: the channels of a pixel side by side in memory, as convolutions prefer them."""

from itertools import chain
from typing import ClassVar

import torch

from detserver.recipes.technique import Plan, Technique


class ChannelsLast(Technique):
    """Networks and inputs in torch's memory format `channels_last`."""

    field = "layout"
    titles: ClassVar = {"channels_last": "channels_last"}
    in_torch = True

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        plan.memory_format = torch.channels_last
        for network in plan.networks:
            assert network.module is not None
            for tensor in chain(network.module.parameters(), network.module.buffers()):
                if tensor.dim() == 4:  # not what `stack=vmap` has stacked, which is of five dimensions
                    tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
