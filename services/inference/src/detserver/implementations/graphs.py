"""`graphs`: networks, top-k and NMS of a batch recorded as one CUDA graph, each network on a stream of its own."""

import torch
from effdet.efficientdet import EfficientDet

from detserver.models.configuration import input_config
from detserver.recipes.cuda_graph import CapturedImpl, on_streams
from detserver.recipes.folding import fold_batch_norm
from detserver.recipes.network import Forward


class Graphs(CapturedImpl):
    """Eager float32 networks without batch norms, launched as one; nothing is compiled and nothing stacked."""

    name = "graphs"
    description = "networks, each on a stream of its own, and post-processing in one CUDA graph per batch size"
    exact = True

    @classmethod
    def unavailable_reason(cls, device: torch.device) -> str | None:
        """See `BaseModelImpl.unavailable_reason`."""
        return None if device.type == "cuda" else "CUDA graphs need an NVIDIA GPU"

    def build(self, models: list[EfficientDet]) -> Forward:
        """See `NetworkImpl.build`."""
        return on_streams([(input_config(model.config), fold_batch_norm(model)) for model in models], self.device)
