"""effdet called as its users call it: what the served answers are held to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from effdet import DetBenchPredict, create_model_from_config, get_efficientdet_config
from effdet.data import resolve_input_config
from effdet.data.transforms import transforms_coco_eval
from PIL import Image


@torch.inference_mode()
def effdet_rows(
    architecture: str,
    num_classes: int,
    state_dict: Mapping[str, torch.Tensor],
    photo: Path,
    changed: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Rows of x1, y1, x2, y2, score, class by effdet's own configuration, transform, network and post-processing.

    Args:
        changed: keys of effdet's configuration with values that are not the architecture's.
    """
    config = get_efficientdet_config(architecture)
    for key, value in (changed or {}).items():
        config[key] = value
    config.num_levels = config.max_level - config.min_level + 1
    taken = resolve_input_config({}, config)
    model = create_model_from_config(config, num_classes=num_classes, pretrained_backbone=False)
    model.load_state_dict(state_dict)
    transform = transforms_coco_eval(
        taken["input_size"][1:],
        interpolation=taken["interpolation"],
        use_prefetcher=True,
        fill_color=taken["fill_color"] if isinstance(taken["fill_color"], (int, str)) else tuple(taken["fill_color"]),
        mean=taken["mean"],
    )
    image = Image.open(photo).convert("RGB")
    pixels, info = transform(image, {})
    # As effdet.data.loader.PrefetchLoader does.
    mean, std = (torch.tensor([x * 255 for x in taken[key]]).view(3, 1, 1) for key in ("mean", "std"))
    normalised = torch.from_numpy(pixels).float().sub_(mean).div_(std)
    image_info = {
        "img_scale": torch.tensor([info["img_scale"]], dtype=torch.float32),
        "img_size": torch.tensor([image.size], dtype=torch.float32),
    }
    rows = DetBenchPredict(model).eval()(normalised[None], image_info)[0].numpy()
    return rows[rows[:, 5] > 0]
