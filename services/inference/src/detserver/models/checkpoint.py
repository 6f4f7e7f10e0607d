"""Weights of one EfficientDet out of the files that people have: effdet's layout, with whatever was wrapped around it.

effdet's own training script, timm, DataParallel, torch.compile, effdet's benches, Lightning and IceVision each put a
prefix before the names, or a dictionary around them; some store the anchors. What a file's shapes and anchors say of
the configuration that it was trained with is compared with the model's, key by key.
"""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from effdet.anchors import Anchors
from effdet.config import get_efficientdet_config, get_fpn_config
from safetensors.torch import load_file

from detserver.errors import WeightsRefused
from detserver.models import configuration
from detserver.models.configuration import ARCHITECTURES, FPN_NAMES
from detserver.models.model_sets import ModelSpec, create_model

StateDict = dict[str, torch.Tensor]

# What training scripts store beside the weights: their options, and a metric. None of these runs anything.
_NUMPY_SCALAR = np.float64().__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # numpy 1's name
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")),
]

# Where a checkpoint keeps its weights, averaged ones first.
_ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model")

_OF_NETWORK = re.compile(r"^((?:.*\.)?)((?:backbone|fpn|class_net|box_net)\..+)$")
_ANCHORS = "anchors.boxes"
_SHOWN = 3


def read_checkpoint(path: Path, spec: ModelSpec) -> StateDict:
    """Read a `.safetensors` file, or anything that `torch.save` wrote, EMA weights first where it has them.

    Returns:
        float32 state dict of `create_model(spec)`.

    Raises:
        WeightsRefused: not readable as weights alone (`weights_only=True`), not the model of `spec`, or not finite.
    """
    if not os.access(path, os.R_OK):  # of which safetensors says that there is no such file
        raise WeightsRefused(f"{path} may not be read by the user of the server; chmod a+r {path.name}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except Exception as error:  # torch, pickle, zipfile and safetensors raise classes of their own, with long texts
        reason = str(error).strip().split("\n")[0][:200]
        raise WeightsRefused(f"{path} cannot be read as weights of {spec.name} ({reason})") from error
    found, anchors = _unwrapped(path, spec, content)
    expected = create_model(spec).state_dict()
    _check(path, spec, expected, found, anchors)
    # Missing counters of training steps are the only difference that `_check` lets pass.
    return {key: found[key].to(value.dtype) if key in found else value for key, value in expected.items()}


def _load_pickle(path: Path) -> Any:
    with torch.serialization.safe_globals(_HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(path: Path, spec: ModelSpec, content: Any) -> tuple[StateDict, torch.Tensor | None]:
    """The network's own tensors by effdet's names, and the anchors where the file has them."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _ENTRIES if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsRefused(f"{path} cannot be read as weights of {spec.name} (it holds no named tensors)")
    tensors = {str(key).replace("_orig_mod.", ""): value for key, value in content.items()}
    by_prefix: dict[str, StateDict] = {}
    for key, value in tensors.items():
        if match := _OF_NETWORK.match(key):
            by_prefix.setdefault(match[1], {})[match[2]] = value
    if not by_prefix:
        first = ", ".join(list(tensors)[:_SHOWN])
        raise WeightsRefused(f"{path} is no EfficientDet of effdet's ({spec.name}): its tensors are called {first}, …")
    averaged = [prefix for prefix in by_prefix if "ema" in prefix.lower()]
    prefixes = averaged or list(by_prefix)
    if not all(_equal(by_prefix[prefix], by_prefix[prefixes[0]]) for prefix in prefixes[1:]):
        names = ", ".join(repr(prefix) for prefix in sorted(prefixes))
        raise WeightsRefused(
            f"{path} holds {len(prefixes)} networks, with the prefixes {names}: save the one that {spec.name} is to be"
        )
    anchors = next((value for key, value in tensors.items() if f".{key}".endswith(f".{_ANCHORS}")), None)
    return by_prefix[prefixes[0]], anchors


def _equal(one: StateDict, other: StateDict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def _check(path: Path, spec: ModelSpec, expected: StateDict, found: StateDict, anchors: torch.Tensor | None) -> None:
    if differences := _differences(expected, found):
        reasons = _contradicted_by_shapes(spec, found) or [
            f"{len(differences)} tensors differ, first {', '.join(differences[:_SHOWN])}"
        ]
    else:
        reasons = _contradicted_by_anchors(spec, anchors)
    if reasons:
        raise WeightsRefused(
            f"{path} is not {spec.architecture} with {spec.num_classes} classes as {spec.name} is configured: "
            f"{'; '.join(reasons)}. Write what it is into the model's entry in the TOML file of model sets, put this "
            "model's weights there, or take the file away to use downloaded or random ones"
        )
    for key, value in found.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsRefused(f"{path}: {key} of {spec.name} holds a NaN or an infinity; the file is damaged")


def _differences(expected: StateDict, found: StateDict) -> list[str]:
    differences = []
    for key in sorted(expected.keys() | found.keys()):
        if key.endswith("num_batches_tracked"):
            continue
        if key not in found:
            differences.append(f"{key} is missing")
        elif key not in expected:
            differences.append(f"{key} is not part of the model")
        elif not isinstance(found[key], torch.Tensor):
            differences.append(f"{key} is no tensor")
        elif found[key].shape != expected[key].shape:
            differences.append(f"{key} has shape {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}")
    return differences


def _contradicted_by_shapes(spec: ModelSpec, found: StateDict) -> list[str]:
    """Each key of the configuration that names and shapes contradict, and what they look like; empty if unclear."""
    config = spec.config()
    seen = _seen(config, found)
    own = {key: value for key, value in seen.items() if config.get(key) != value}
    if seen and _fits(spec.architecture, dict(spec.overrides) | seen, found):
        return [_looks_like(key, value, config.get(key)) for key, value in own.items()]
    as_large = [name for name in ARCHITECTURES if _is_as_large(name, seen)]
    only_classes = {"num_classes": seen.get("num_classes")}
    fitting = [name for name in as_large if _fits(name, only_classes, found)]
    if not fitting:
        return []
    of_head = [_looks_like(key, own[key], config[key]) for key in ("num_classes",) if key in own]
    return [_looks_like("architecture", " or ".join(fitting), spec.architecture), *of_head]


def _looks_like(key: str, value: Any, configured: Any) -> str:
    return f"the file looks like {key} = {_toml(value)}, and the configuration says {_toml(configured)}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if hasattr(value, "__iter__"):
        return f"[{', '.join(map(_toml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _seen(config: Any, found: StateDict) -> dict[str, Any]:
    """What names and shapes say of effdet's configuration; empty where there are no heads."""
    separable = "box_net.predict.conv_pw.weight" in found
    last = "conv_pw" if separable else "conv"
    heads = [found.get(f"{head}.predict.{last}.bias") for head in ("class_net", "box_net")]
    if any(head is None for head in heads):
        return {}
    classes, boxes = (len(head) for head in heads if head is not None)
    anchors = boxes // 4
    level_first = "class_net.bn_rep.0.0.weight" in found
    levels = _count(found, r"class_net\.bn_rep\.(\d+)\.0\." if level_first else r"class_net\.bn_rep\.0\.(\d+)\.")
    max_level = config.min_level + levels - 1
    seen = {
        "num_classes": classes // anchors,
        "max_level": max_level,
        "separable_conv": separable,
        "redundant_bias": f"class_net.conv_rep.0.{last}.bias" in found,
        "head_bn_level_first": level_first,
        "apply_resample_bn": any(".resample." in key and key.endswith(".conv.bn.weight") for key in found),
        "fpn_channels": found[f"class_net.predict.{last}.weight"].shape[1],
        "fpn_cell_repeats": _count(found, r"fpn\.cell\.(\d+)\."),
        "box_class_repeats": _count(found, r"class_net\.conv_rep\.(\d+)\."),
    }
    ratios = len(config.aspect_ratios)
    if anchors % ratios == 0:
        seen["num_scales"] = anchors // ratios
    fusions = [found.get(f"fpn.cell.0.fnode.{node}.combine.edge_weights") for node in range(_count(found, _FUSION))]
    inputs = [None if weights is None else len(weights) for weights in fusions]
    configured = config.fpn_name or FPN_NAMES[0]
    names = [name for name in (configured, *FPN_NAMES) if _fusion_inputs(name, config.min_level, max_level) == inputs]
    return seen | ({"fpn_name": names[0]} if names and names[0] != configured else {})


_FUSION = r"fpn\.cell\.0\.fnode\.(\d+)\."


def _count(found: StateDict, pattern: str) -> int:
    return len({match[1] for key in found if (match := re.match(pattern, key))})


def _fusion_inputs(name: str, min_level: int, max_level: int) -> list[int | None]:
    """How many fusion weights each node of a BiFPN cell has; None where it has none."""
    nodes = get_fpn_config(name, min_level, max_level).nodes
    return [None if node.weight_method == "sum" else len(node.inputs_offsets) for node in nodes]


def _is_as_large(architecture: str, seen: Mapping[str, Any]) -> bool:
    config = get_efficientdet_config(architecture)
    return all(config[key] == seen.get(key) for key in ("fpn_channels", "fpn_cell_repeats", "box_class_repeats"))


def _fits(architecture: str, seen: Mapping[str, Any], found: StateDict) -> bool:
    given = {key: value for key, value in seen.items() if key != "num_classes"}
    changed = configuration.overrides(architecture, given)
    try:
        model = configuration.build(configuration.effdet_config(architecture, seen["num_classes"], changed))
    except Exception:  # what effdet cannot build is none of its networks
        return False
    return not _differences(model.state_dict(), found)


def _contradicted_by_anchors(spec: ModelSpec, anchors: torch.Tensor | None) -> list[str]:
    """The keys of the configuration that stored anchors contradict; weights alone do not show them."""
    config = spec.config()
    if anchors is None or _has_anchors(config, {}, anchors):
        return []
    seen = _seen_in_anchors(config, anchors)
    hypotheses = [(key,) for key in seen] + [("image_size", "anchor_scale")]
    for keys in hypotheses:
        if _has_anchors(config, {key: seen[key] for key in keys}, anchors):
            return [_looks_like(key, seen[key], config[key]) for key in keys]
    keys_of_anchors = ("image_size", "anchor_scale", "aspect_ratios", "num_scales")
    configured = ", ".join(f"{key} = {_toml(config[key])}" for key in keys_of_anchors)
    return [f"the anchors that it stores are not those of {configured}"]


def _seen_in_anchors(config: Any, anchors: torch.Tensor) -> dict[str, Any]:
    """What `image_size`, `anchor_scale` or `aspect_ratios` would be, if all others were as configured."""
    low, high = anchors.double()[:, :2], anchors.double()[:, 2:]  # y, x
    centres = (low + high) / 2
    stride = 2 * centres[0]  # of the finest level, whose first and last cells lie closest to the corners
    image_size = tuple((centres.amax(0) + centres[0]).round().int().tolist())
    ratios = [ratio if hasattr(ratio, "__iter__") else (ratio**0.5, ratio**-0.5) for ratio in config.aspect_ratios]
    sizes = ((high - low)[: len(ratios)] / stride).flip(1)  # of the first octave: width, height in strides
    scale = config.anchor_scale[0] if hasattr(config.anchor_scale, "__iter__") else config.anchor_scale
    return {
        "image_size": image_size,
        "anchor_scale": round((sizes[0, 0] / ratios[0][0]).item(), 3),
        "aspect_ratios": tuple((round(width, 3), round(height, 3)) for width, height in (sizes / scale).tolist()),
    }


def _has_anchors(config: Any, changed: Mapping[str, Any], anchors: torch.Tensor) -> bool:
    used = {key: changed.get(key, config[key]) for key in _ARGUMENTS}
    boxes = Anchors(**used).boxes
    tolerance = 4 * torch.finfo(anchors.dtype).eps * boxes.abs().max().item()
    return boxes.shape == anchors.shape and torch.allclose(boxes, anchors.float(), rtol=0, atol=tolerance)


_ARGUMENTS = ("min_level", "max_level", "num_scales", "aspect_ratios", "anchor_scale", "image_size")
