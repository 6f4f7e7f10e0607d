"""From a decoded picture to the inputs of the networks, where the device wants them.

On a GPU the picture crosses as it was decoded, in 8 bits, and is letterboxed there: D0, D1 and D2 take 15 MB in
float32, and a photograph of COCO has 0.9. Each thread that decodes has a stream and pinned memory of its own, so that
copies and letterboxes of several overlap, also with the batch that the device works on.
"""

import threading
from collections.abc import Iterable
from concurrent.futures import Executor

import numpy as np
import torch
from PIL import Image

from detserver.machine.device import claim
from detserver.preprocess.letterbox import InputConfig, NetworkInput, PreparedImage, prepare, prepare_on_device
from detserver.preprocess.slots import Slots

# Larger pictures cross from memory that is not pinned: that stays with its thread.
_MOST_PINNED = 32 << 20

_own = threading.local()


def uploaded_bytes(image: Image.Image, device: torch.device) -> int:
    """How many bytes of a picture cross to `device` for all of its inputs."""
    return 0 if device.type == "cpu" else 3 * image.width * image.height


def prepare_for(
    device: torch.device,
    image: Image.Image,
    configs: Iterable[InputConfig],
    memory_format: torch.memory_format = torch.contiguous_format,
    helpers: Executor | None = None,
    slots: Slots | None = None,
) -> PreparedImage:
    """Letterbox and normalise `image` for each distinct configuration, on `device`; all of it is done on return.

    Args:
        image: mode RGB.
        memory_format: how the pixels lie there.
        helpers: threads that may do a part of it on a CPU, if they are free.
        slots: where the memory on a CPU comes from, see `prepare`.

    Raises:
        ImageTooSmall: a side has no pixel left after scaling.
    """
    if device.type == "cpu":
        return prepare(image, configs, memory_format, helpers, slots)
    claim(device)
    configs = list(configs)
    if any(config.by_pillow_alone for config in configs):
        return _moved(prepare(image, configs, memory_format), device)
    if not hasattr(_own, "stream"):
        _own.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        _own.slot = torch.empty(0, dtype=torch.uint8)
    with torch.cuda.stream(_own.stream):
        pixels = _in_slot(image).to(device, non_blocking=True)
        prepared = prepare_on_device(pixels, configs, memory_format)
        _own.stream.synchronize()
    return prepared


def _in_slot(image: Image.Image) -> torch.Tensor:
    """The picture, uint8 (H, W, 3), in this thread's pinned memory if it is not too large for that."""
    values = torch.from_numpy(np.array(image))
    size = values.numel()
    if size > _MOST_PINNED:
        return values
    if size > _own.slot.numel():
        _own.slot = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    slot: torch.Tensor = _own.slot[:size]
    return slot.view_as(values).copy_(values)


def _moved(prepared: PreparedImage, device: torch.device) -> PreparedImage:
    inputs = {config: NetworkInput(each.pixels.to(device), each.scale) for config, each in prepared.inputs.items()}
    return PreparedImage(prepared.width, prepared.height, inputs)
