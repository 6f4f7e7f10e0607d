"""What every implementation shares in which only the networks' forward pass is its own."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from effdet.efficientdet import EfficientDet

from detserver.implementations.base import BaseModelImpl, DetectionOutput
from detserver.postprocess import PostProcessor, RawOutput, detection_output
from detserver.preprocess import InputConfig, PreparedImage

Inputs = Mapping[InputConfig, torch.Tensor]
"""Network inputs by their configuration: float32 (B, 3, height, width)."""

Forward = Callable[[Inputs], list[RawOutput]]
"""Raw outputs of every model of the set, in its order."""


class NetworkImpl(BaseModelImpl):
    """Runs the networks its own way, and post-processes all models and images of a batch at once.

    A subclass defines `build`. Its `memory_format` is that of the network inputs.
    """

    max_batch_size = 16
    memory_format: torch.memory_format = torch.contiguous_format

    @abstractmethod
    def build(self, models: list[EfficientDet]) -> Forward:
        """Make the forward pass out of new networks, which are on the device and the subclass's to change."""

    def batch_sizes(self) -> Sequence[int]:
        """Ascending sizes that the forward pass is made for; empty where it takes any.

        A batch of another size is padded to the next, and one that is larger than all is run in pieces.
        """
        return ()

    @torch.inference_mode()
    def load(self) -> None:
        """Build the networks and their forward pass, and run it once for each batch size."""
        self.postprocessor = PostProcessor(self.model_set.models, self.device)
        self.forward = self.build(self.build_models())
        self.warm_up()
        self.remark = "; ".join(self.remarks())

    def warm_up(self) -> None:
        """Run once for each batch size."""
        for batch_size in self.batch_sizes() or (1,):
            self.predict_batch([self.example()] * batch_size)
        self.take_stages()

    def remarks(self) -> list[str]:
        """What really runs, as far as description and name leave it open; asked when it is loaded, for `remark`."""
        match list(self.batch_sizes()):
            case []:
                return []
            case [1]:
                return ["one image at a time"]
            case sizes:
                return [f"batches of {', '.join(map(str, sizes))}"]

    def forget(self) -> None:
        """Drop what was made for the forward pass that was in use until now."""

    def predict(self, image: PreparedImage) -> list[DetectionOutput]:
        """See `BaseModelImpl.predict`."""
        return self.predict_batch([image])[0]

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
        """See `BaseModelImpl.predict_batch`."""
        outputs: list[list[DetectionOutput]] = []
        for piece in pieces(images, self.batch_sizes()):
            outputs += self._outputs(self.detect(piece))
        return outputs[: len(images)]

    def detect(self, images: Sequence[PreparedImage]) -> torch.Tensor:
        """Rows of detections, float32 (M, B, N, 6) on the host, of a batch of one of the sizes that there are."""
        with self.stage("forward"):
            inputs = {config: self.stacked(images, config).to(self.device) for config in self.model_set.inputs}
            raw = self.forward(inputs)
        with self.stage("postprocess"):
            return self.postprocessor(raw, *(part.to(self.device) for part in self.geometry(images)))

    def stacked(self, images: Sequence[PreparedImage], config: InputConfig) -> torch.Tensor:
        """Network inputs of one configuration, float32 (B, 3, height, width) on the host."""
        pixels = torch.stack([image.inputs[config].pixels for image in images])
        return pixels.contiguous(memory_format=self.memory_format)

    def geometry(self, images: Sequence[PreparedImage]) -> tuple[torch.Tensor, torch.Tensor]:
        """`scales` and `sizes` of `PostProcessor.__call__`, on the host."""
        scales = [[image.inputs[spec.input].scale for image in images] for spec in self.model_set.models]
        return torch.tensor(scales), torch.tensor([[image.width, image.height] for image in images], dtype=torch.float)

    def _outputs(self, rows: torch.Tensor) -> list[list[DetectionOutput]]:
        by_image = rows.transpose(0, 1).numpy()
        return [
            [detection_output(spec.name, found) for spec, found in zip(self.model_set.models, per_model, strict=True)]
            for per_model in by_image
        ]


def pieces(images: Sequence[PreparedImage], sizes: Sequence[int]) -> Iterator[Sequence[PreparedImage]]:
    """Cut a batch into pieces of the given sizes, the last one padded with its last image; whole if none is given."""
    if not sizes:
        yield images
        return
    rest = list(images)
    while rest:
        size = next((size for size in sizes if size >= len(rest)), sizes[-1])
        piece, rest = rest[:size], rest[size:]
        yield [*piece, *[piece[-1]] * (size - len(piece))]


def one_after_the_other(networks: Sequence[tuple[InputConfig, Callable[[torch.Tensor], RawOutput]]]) -> Forward:
    """The forward pass of networks, given with their input configurations, that know nothing of each other."""
    return lambda inputs: [network(inputs[config]) for config, network in networks]
