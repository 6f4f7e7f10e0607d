"""What the tests of the backends share: a detector that is quick to convert, and its detections by any network."""

from collections.abc import Callable
from pathlib import Path

import torch

from detserver.models.model_sets import ModelSpec
from detserver.models.weights import WeightsStore
from detserver.postprocess import PostProcessor, RawOutput
from detserver.preprocess import prepare
from detserver.preprocess.decoding import decode

_FEWER_LAYERS = (("box_class_repeats", 1), ("fpn_cell_repeats", 1))
SMALL = ModelSpec("small", "tf_efficientdet_d0", 7, overrides=(*_FEWER_LAYERS, ("image_size", (256, 256))))
CPU = torch.device("cpu")

Network = Callable[[torch.Tensor], RawOutput]


@torch.inference_mode()
def raw_and_detections(network: Network, photo: Path) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Raw outputs of all levels, and detections (N, 6) of score 0.1 or more: x1, y1, x2, y2, score, class."""
    image = decode(photo.read_bytes(), 50_000_000)
    prepared = prepare(image, [SMALL.input]).inputs[SMALL.input]
    classes, boxes = network(prepared.pixels[None])
    raw = [level.clone() for level in (*classes, *boxes)]
    scales, sizes = torch.tensor([[prepared.scale]]), torch.tensor([[image.width, image.height]], dtype=torch.float)
    rows = PostProcessor([SMALL], CPU)([(classes, boxes)], scales, sizes)[0, 0]
    return raw, rows[rows[:, 4] >= 0.1]


def assert_same_answers(network: Network, store: WeightsStore, photos: list[Path]) -> None:
    """Hold a network to the gate for exact implementations, its maxima included."""
    eager = store.model(SMALL)
    for photo in photos:
        expected, wanted = raw_and_detections(eager, photo)
        found, got = raw_and_detections(network, photo)
        for level, own in zip(found, expected, strict=True):
            assert level.shape == own.shape
            assert (level - own).abs().max() < 1e-4 * own.abs().max()
        assert len(wanted) > 0
        assert got[:, 5].tolist() == wanted[:, 5].tolist()
        assert (got[:, :4] - wanted[:, :4]).abs().max() < 0.05
        assert (got[:, 4] - wanted[:, 4]).abs().max() < 1e-3
