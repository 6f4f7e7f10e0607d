"""`fused` and `fused-bf16`: the fastest combination for the set and the device."""

from collections.abc import Sequence

import torch
from effdet.efficientdet import EfficientDet

from detserver.models.configuration import input_config
from detserver.recipes import compiling, openvino_network, stacking
from detserver.recipes.choice import LAYOUTS, ChosenImpl, Finish, Variant, grouped_variants, in_sequence
from detserver.recipes.cuda_graph import CapturedImpl, on_streams
from detserver.recipes.folding import fold_batch_norm
from detserver.recipes.network import Forward, one_after_the_other


class Fused(CapturedImpl, ChosenImpl):
    """On a GPU a CUDA graph of stacked or separate networks, compiled where that helps; on a CPU OpenVINO or torch."""

    name = "fused"
    description = "the fastest exact combination for this set and device, chosen by timing on the first load"
    exact = True

    @classmethod
    def technique_on(cls, device: torch.device) -> str:
        """See `BaseModelImpl.technique_on`."""
        return "CUDA graphs" if device.type == "cuda" else "OpenVINO"

    @classmethod
    def compiles(cls, device: torch.device) -> bool:
        """See `BaseModelImpl.compiles`; on a CPU it takes minutes and OpenVINO is faster."""
        return device.type == "cuda" and compiling.unavailable_reason(device) is None

    @classmethod
    def batch_limit(cls, device: torch.device) -> int:
        """See `BaseModelImpl.batch_limit`; on a CPU a batch takes as long as its images one after the other."""
        return cls.max_batch_size if device.type == "cuda" else 1

    def batch_sizes(self) -> Sequence[int]:
        """See `NetworkImpl.batch_sizes`."""
        return super().batch_sizes() or (1,)

    def variants(self) -> Sequence[Variant]:
        """See `ChosenImpl.variants`."""
        if self.device.type == "cuda":
            separate = [Variant(f"on streams, {name}", self._on_streams, layout) for name, layout in LAYOUTS.items()]
            stackable = stacking.unsupported_reason(self.model_set) is None
            return [*separate, *(grouped_variants(self.model_set) if stackable else ())]
        torch_alone = Variant("folded, channels_last", in_sequence, torch.channels_last)
        if openvino_network.unavailable_reason(self.device) is not None:
            return [torch_alone]
        return [torch_alone, Variant("openvino", self._openvino, can_compile=False)]

    def _on_streams(self, models: list[EfficientDet], finish: Finish) -> Forward:
        return on_streams([(input_config(m.config), finish(fold_batch_norm(m))) for m in models], self.device)

    def prepare(self) -> None:
        """See `BaseModelImpl.prepare`."""
        super().prepare()
        if openvino_network.unavailable_reason(self.device) is None:
            for spec in self.model_set.models:
                openvino_network.prepare(spec, self.weights, self.precision)

    def remarks(self) -> list[str]:
        """See `NetworkImpl.remarks`."""
        own = self._openvino_remark if self._variant.name == "openvino" else ""
        return [*super().remarks(), *([own] if own else [])]

    def _openvino(self, models: list[EfficientDet], _: Finish) -> Forward:  # noqa: ARG002 (the converted ones run)
        specs = self.model_set.models
        networks = [openvino_network.network(spec, self.weights, self.precision, self.device) for spec in specs]
        self._openvino_remark = networks[0].remark
        forward = one_after_the_other([(spec.input, run) for spec, run in zip(specs, networks, strict=True)])
        return lambda inputs: forward({config: pixels.float() for config, pixels in inputs.items()})


class FusedBf16(Fused):
    """As `fused`, in bfloat16. Boxes and scores are computed from its raw outputs in float32."""

    name = "fused-bf16"
    description = "as fused, in bfloat16: not exact, see its output error"
    precision = "bf16"
    exact = False
    dtype = torch.bfloat16

    @classmethod
    def technique_on(cls, device: torch.device) -> str:  # noqa: ARG003 (on all)
        """See `BaseModelImpl.technique_on`."""
        return "bf16"
