"""`openvino`: each network through OpenVINO, fp32, on the CPU."""

import torch
from effdet.efficientdet import EfficientDet

from detserver.recipes import openvino_network
from detserver.recipes.network import Forward, NetworkImpl, one_after_the_other


class OpenVino(NetworkImpl):
    """Networks compiled by OpenVINO, one after the other, each with all threads; converted ones are kept."""

    name = "openvino"
    description = "each model through OpenVINO, fp32, one after the other; post-processing of all at once"
    exact = True
    max_batch_size = 1  # a batch takes as long as its images one after the other

    @classmethod
    def unavailable_reason(cls, device: torch.device) -> str | None:
        """See `BaseModelImpl.unavailable_reason`."""
        return openvino_network.unavailable_reason(device)

    def batch_sizes(self) -> tuple[int, ...]:
        """See `NetworkImpl.batch_sizes`."""
        return (1,)

    def build(self, models: list[EfficientDet]) -> Forward:  # noqa: ARG002 (the converted ones run)
        """See `NetworkImpl.build`."""
        return one_after_the_other(
            [
                (spec.input, openvino_network.network(spec, self.weights, "fp32", self.device))
                for spec in self.model_set.models
            ]
        )

    def prepare(self) -> None:
        """See `BaseModelImpl.prepare`."""
        super().prepare()
        for spec in self.model_set.models:
            openvino_network.prepare(spec, self.weights, "fp32")
