"""`baseline`: effdet as its users run it. Every other implementation is measured, and held, against it."""

import time

import torch
from effdet import DetBenchPredict

from detserver.implementations.base import BaseModelImpl, DetectionOutput
from detserver.postprocess import detection_output
from detserver.preprocess import PreparedImage


class Baseline(BaseModelImpl):
    """One model after the other, one image at a time, eager float32, effdet's own post-processing."""

    name = "baseline"
    description = "effdet's DetBenchPredict, eager fp32, one model after the other, one image at a time"
    exact = True

    def load(self) -> None:
        """Build a `DetBenchPredict` per model: top 5000, per-class NMS at IoU 0.5, 100 detections."""
        self._benches = [DetBenchPredict(model).to(self.device).eval() for model in self.build_models()]
        self._network_end = 0.0
        for bench in self._benches:
            bench.model.register_forward_hook(self._note_network_end)

    @torch.inference_mode()
    def predict(self, image: PreparedImage) -> list[DetectionOutput]:
        """See `BaseModelImpl.predict`."""
        outputs = []
        for spec, bench in zip(self.model_set.models, self._benches, strict=True):
            network_input = image.inputs[spec.input]
            start = time.perf_counter()
            image_info = {
                "img_scale": torch.tensor([network_input.scale], device=self.device),
                "img_size": torch.tensor([[image.width, image.height]], dtype=torch.float32, device=self.device),
            }
            rows = bench(network_input.pixels[None].to(self.device), image_info)[0].cpu().numpy()
            end = time.perf_counter()
            self.count("forward", self._network_end - start)
            self.count("postprocess", end - self._network_end)
            outputs.append(detection_output(spec.name, rows, (end - start) * 1e3))
        return outputs

    def _note_network_end(self, *_: object) -> None:
        # A hook rather than two calls: what is measured stays `DetBenchPredict.forward`, whole.
        self.synchronize()
        self._network_end = time.perf_counter()
