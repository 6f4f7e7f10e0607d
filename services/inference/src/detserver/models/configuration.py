"""effdet's configuration of a model: what its architecture says, and what a checkpoint was trained with instead."""

import functools
import math
from typing import Annotated, Any, Literal, get_args

from effdet import EfficientDet, get_efficientdet_config
from effdet.anchors import get_feat_sizes
from effdet.config.model_config import efficientdet_model_param_dict
from effdet.data import resolve_input_config
from effdet.data.transforms import resolve_fill_color
from effdet.efficientdet import HeadNet
from effdet.factory import create_model_from_config
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

from detserver.preprocess import InputConfig

ARCHITECTURES = tuple(efficientdet_model_param_dict)
"""effdet's names."""

Overrides = tuple[tuple[str, Any], ...]
"""Keys of effdet's configuration and their values, hashable, sorted; only what differs from the architecture's own."""

_Positive = Annotated[int, Field(ge=1)]
_Side = Annotated[int, Field(ge=128, le=8192)]  # at P7, the coarsest level, 128 pixels are one cell
_Channel = Annotated[float, Field(ge=0, le=1)]
_Value = Annotated[int, Field(ge=0, le=255)]
_Scale = Annotated[float, Field(gt=0)]


_FpnName = Literal["bifpn_fa", "bifpn_attn", "bifpn_sum", "pan_fa", "pan_sum", "qufpn_fa", "qufpn_sum"]
FPN_NAMES: tuple[str, ...] = get_args(_FpnName)
"""As effdet.config.get_fpn_config, its default first."""


class OverridesEntry(BaseModel):
    """The keys of effdet's configuration that a model may have otherwise than its architecture.

    They are those that change the answers, by effdet's names and with its meanings (effdet.config.model_config). Keys
    of training alone (losses, drop rates) are none of them.
    """

    model_config = ConfigDict(extra="forbid")

    # What the network takes.
    image_size: _Side | tuple[_Side, _Side] | None = None  # height, width
    mean: tuple[_Channel, _Channel, _Channel] | None = None
    std: tuple[_Scale, _Scale, _Scale] | None = None
    interpolation: Literal["bilinear", "bicubic", "lanczos", "hamming"] | None = None
    fill_color: Literal["mean"] | _Value | tuple[_Value, _Value, _Value] | None = None
    # Anchors.
    anchor_scale: _Scale | list[_Scale] | None = None
    aspect_ratios: Annotated[list[_Scale] | list[tuple[_Scale, _Scale]], Field(min_length=1)] | None = None
    num_scales: _Positive | None = None
    max_level: Annotated[int, Field(ge=5, le=10)] | None = None
    # The network.
    backbone_name: str | None = None
    fpn_name: _FpnName | None = None
    fpn_channels: _Positive | None = None
    fpn_cell_repeats: _Positive | None = None
    box_class_repeats: _Positive | None = None
    separable_conv: bool | None = None
    apply_resample_bn: bool | None = None
    conv_bn_relu_pattern: bool | None = None
    downsample_type: Literal["max", "avg", "bilinear", "nearest"] | None = None
    upsample_type: Literal["nearest", "bilinear"] | None = None
    pad_type: Literal["same", ""] | None = None
    act_type: str | None = None
    head_act_type: str | None = None
    redundant_bias: bool | None = None
    head_bn_level_first: bool | None = None
    # What becomes of its outputs.
    max_detection_points: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max_det_per_image: Annotated[int, Field(ge=1, le=1000)] | None = None

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _one_for_all_channels(cls, value: object) -> object:
        return (value,) * 3 if isinstance(value, int | float) else value


KEYS = tuple(OverridesEntry.model_fields)
"""What `OverridesEntry` takes."""

# Any value of these goes with the same weights. The others belong to a checkpoint.
_FREE = frozenset(("image_size", "mean", "std", "interpolation", "fill_color"))
_OF_OUTPUTS = frozenset(("max_detection_points", "max_det_per_image"))
_OF_ANCHORS = frozenset(("anchor_scale",))


def overrides(architecture: str, given: dict[str, Any]) -> Overrides:
    """What of `given`, keys and values of effdet's configuration, differs from the architecture's own."""
    config = get_efficientdet_config(architecture)
    config.fpn_name = config.fpn_name or FPN_NAMES[0]
    if isinstance(given.get("image_size"), int):
        given = given | {"image_size": (given["image_size"],) * 2}
    different = ((key, _hashable(value)) for key, value in given.items() if value is not None)
    return tuple(sorted((key, value) for key, value in different if _hashable(config.get(key)) != value))


def effdet_config(architecture: str, num_classes: int, changed: Overrides) -> Any:
    """A new effdet configuration, which is the caller's to change.

    `max_detection_points` is at most what there is: effdet's top-k fails where a small picture has fewer (anchor,
    class) pairs.
    """
    config = get_efficientdet_config(architecture)
    config.num_classes = num_classes
    for key, value in changed:
        config[key] = value
    config.num_levels = config.max_level - config.min_level + 1
    cells = sum(math.prod(size) for size in get_feat_sizes(config.image_size, config.max_level)[config.min_level :])
    pairs = cells * config.num_scales * len(config.aspect_ratios) * num_classes
    config.max_detection_points = min(config.max_detection_points, pairs)
    return config


def build(config: Any) -> EfficientDet:
    """The network of an effdet configuration, without post-processing, with no weights of value; asks no network."""
    return create_model_from_config(config, bench_task="", pretrained=False, pretrained_backbone=False)


def norms_by_repeat(head: HeadNet) -> list[list[nn.BatchNorm2d]]:
    """The batch norms of a head, for each repeat one per level; effdet keeps them so or by level first."""
    if head.bn_level_first:
        return [list(repeat) for repeat in zip(*head.bn_rep, strict=True)]
    return [[level.bn for level in repeat] for repeat in head.bn_rep]


def input_config(config: Any) -> InputConfig:
    """What the network of an effdet configuration takes, by effdet's own resolver."""
    resolved = resolve_input_config({}, config)
    _, height, width = resolved["input_size"]
    (red, green, blue), std = (tuple(float(value) for value in resolved[key]) for key in ("mean", "std"))
    fill = resolved["fill_color"]
    return InputConfig(
        size=(int(height), int(width)),
        mean=(red, green, blue),
        std=(std[0], std[1], std[2]),
        interpolation=str(resolved["interpolation"]),
        fill_color=resolve_fill_color(fill if isinstance(fill, int | str) else tuple(fill), (red, green, blue)),
    )


@functools.cache
def published_weights(architecture: str) -> tuple[str, int]:
    """URL of effdet's pretrained weights, empty where there are none, and the number of their classes."""
    config = get_efficientdet_config(architecture)
    return str(config.url or ""), int(config.num_classes)


def takes_published_weights(changed: Overrides) -> bool:
    """Whether weights that were trained with the architecture's own configuration go with this one."""
    return _keys(changed) <= _FREE | _OF_OUTPUTS


def of_network(changed: Overrides) -> Overrides:
    """What makes the networks' arithmetic differ, their inputs (`InputConfig`) apart."""
    return tuple((key, value) for key, value in changed if key not in _FREE | _OF_OUTPUTS | _OF_ANCHORS)


def _keys(changed: Overrides) -> set[str]:
    return {key for key, _ in changed}


def _hashable(value: Any) -> Any:
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return value
    return tuple(_hashable(each) for each in value)
