"""Random weights whose scores spread like a trained detector's, for when no trained ones can be had.

effdet's own random initialisation gives logits that are equal to within about 1e-5, so top-k and NMS order are noise.
Here the weights are drawn so that photographs of any contrast end in activations of about the same size, batch norm
statistics come from procedural scenes, and the class head fires at a few places of every picture. The detections mean
nothing; they depend on every layer, which is what a speed or parity measurement needs.

Step by step, with the reasons and the tests that it is trusted for: docs/calibrated-weights.md.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from effdet import EfficientDet
from effdet.efficientdet import HeadNet, SeparableConv2d
from torch import nn
from torch.overrides import TorchFunctionMode

from detserver.errors import WeightsRefused
from detserver.models.configuration import norms_by_repeat
from detserver.models.model_sets import ModelSpec, create_model
from detserver.models.scenes import dead_leaves
from detserver.preprocess import InputConfig

_Array = npt.NDArray[np.float64]

# Hidden head channels come in pairs that differ only in their batch norm bias: swish(z + d) - swish(z - d) is a soft
# clip. It keeps a photograph's few strongest edges from deciding its top score. The difference is taken by the next
# layer's weights, which leave 3 % of the slope so that no two strong responses become equal.
_PAIR_SUBTRACTED = 0.97
_PAIR_JITTER = 0.02
_CLIP_GAIN, _CLIP_OFFSET = 2.0, 2.0

# Batch norms of backbone and BiFPN end in values this small, where swish is nearly linear: the more it bends, the more
# a network of 100 layers amplifies rounding errors. The gain of squeeze-and-excite makes up for the smaller values that
# it sees; with 300 it amplified errors itself.
_NORM_WEIGHTS, _NORM_BIAS_STD = (0.1, 0.2), 0.05
_GATE_GAIN = 128.0

# A channel of the class head's last layer is on at this many positions per level (P3 to P7) and image, and off where
# it is exceeded at `_OFF_RATIO` times as many; in between its response climbs by `_STEP`, in units of swish's argument.
# A larger ratio makes a flatter step, which amplifies errors less. With 25 % higher rates the lowest returned score of
# some of the 117 photographs was above 0.05.
_ON_RATES = (0.35, 0.35, 0.35, 0.32, 0.28)
_OFF_RATIO = 20.0
# Off is what is exceeded in at most this share of a level's cells, which are few in a small picture. No level of 512 x
# 512 pixels comes to it.
_LARGEST_OFF_SHARE = 0.4
_STEP = 4.0

# Logit of the preferred (anchor, class) outputs where their channel is off, and its rise where it is on at one cell
# and all neighbours. For others it is lower by `_DROP` x rank + (rank / `_PREFERRED`)^2, at most `_LARGEST_DROP`, so
# that the number of detections does not grow with the number of classes, and top scores lie apart. The rise is then
# scaled so that the highest logit of the median scene is `_TOP_LOGIT`: without that D2's top scores were 0.9999, where
# float32 makes ties.
_OFF_LOGIT, _LOGIT_RISE = -6.0, 15.0
_TOP_LOGIT = 5.0
_DROP, _PREFERRED = 0.5, 6.0
_LARGEST_DROP = 13.0
_MIXING = 0.05

# Of the box head's outputs, which scale with the anchor: half of it moves a box half as far by the same error.
_BOX_STD = 0.1
_CALIBRATION_PIXELS = 5 * 512**2


def calibrated_state_dict(spec: ModelSpec, seed: int) -> dict[str, torch.Tensor]:
    """Draw the weights of an EfficientDet and calibrate them on procedural scenes.

    Weights come from numpy's PCG64, the calibration runs in float64, and every statistic that it yields is rounded to
    11 bits, so that the order of a sum (number of threads, CPU) does not show in the result.

    Args:
        spec: the model.
        seed: another one gives another model. Architecture and number of classes count too.

    Returns:
        float32 state dict of `create_model(spec)`.

    Raises:
        WeightsRefused: its heads are not of separable convolutions, as those of all D0 to D7 are.
    """
    rng = np.random.Generator(np.random.PCG64([seed, spec.num_classes, *spec.architecture.encode()]))
    model = create_model(spec)
    if not model.config.separable_conv:
        raise WeightsRefused(
            f"{spec.name}: {spec.architecture} has no calibrated random weights, because its heads are not separable: "
            "give it a weights file"
        )
    model.double().eval()
    _draw_body(model, rng)
    for head in (model.class_net, model.box_net):
        _draw_hidden_layers(head, rng)
    # A kernel without a mean answers flat areas (sky, letterbox padding) alike: weakly. A level there would make
    # thousands of equal scores.
    kernels = model.class_net.conv_rep[-1].conv_dw.weight.data
    kernels -= kernels.mean(dim=(2, 3), keepdim=True)

    with _DepthwiseByShifts():
        features, responses, boxes = _normalise(model, _scenes(rng, spec.input))
    for norm, response, rate in zip(_last_norms(model.class_net), responses, _rates(model), strict=True):
        _set_thresholds(norm, response, rate, rng)
    _draw_class_outputs(model.class_net.predict, rng)
    with torch.no_grad(), _DepthwiseByShifts():
        logits = torch.cat([level.flatten(1) for level in model.class_net(features)], dim=1)
    rise = logits.amax(dim=1).median() - _OFF_LOGIT
    model.class_net.predict.conv_pw.weight.data *= _rounded((_TOP_LOGIT - _OFF_LOGIT) / rise)
    scale = _rounded(_BOX_STD / torch.cat([level.flatten() for level in boxes]).std())
    model.box_net.predict.conv_pw.weight.data *= scale
    model.box_net.predict.conv_pw.bias.data *= scale
    return {name: value.float() if value.is_floating_point() else value for name, value in model.state_dict().items()}


class _DepthwiseByShifts(TorchFunctionMode):
    """Computes depthwise convolutions, within it, as sums of shifted and weighted pictures.

    torch has no kernel for them in float64, and runs its general one channel by channel, 14,490 times for a D0, whose
    calibration took 140 s so on two cores that other programs used too, and 17 s by shifts. The sums are in another
    order, which does not show in the rounded statistics.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs:
            inputs, weight, bias, stride, padding, dilation, groups = args
            depthwise = groups == inputs.shape[1] == weight.shape[0] > 1
            if depthwise and isinstance(padding, tuple) and tuple(dilation) == (1, 1):
                return _depthwise(inputs, weight, bias, stride, padding)
        return func(*args, **(kwargs or {}))


def _depthwise(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> torch.Tensor:
    """torch.conv2d of `inputs` (N, C, H, W) with `weight` (C, 1, height, width), each channel by its own filter."""
    (down, right), (height, width) = stride, weight.shape[2:]
    padded = nn.functional.pad(inputs, (padding[1], padding[1], padding[0], padding[0]))
    rows, columns = (padded.shape[2] - height) // down + 1, (padded.shape[3] - width) // right + 1
    total = inputs.new_zeros(()) if bias is None else bias[:, None, None]
    total = total.expand(len(inputs), len(weight), rows, columns).clone()
    for y in range(height):
        for x in range(width):
            shifted = padded[:, :, y : y + down * rows : down, x : x + right * columns : right]
            total.addcmul_(shifted[:, :, :rows, :columns], weight[:, 0, y, x, None, None])
    return total


def _draw_body(model: EfficientDet, rng: np.random.Generator) -> None:
    """Set every convolution, batch norm and fusion weight, none of them to a neutral value.

    Filters over several channels get a mean of zero: swish's outputs have a positive mean, which would otherwise
    dominate the sums and, once batch norm subtracts it, amplify their rounding errors. The stem keeps a fifth of its
    filters' means, so that it is no pure edge filter, which rounding errors pass better than pictures do.
    Squeeze-and-excite lowers its gates where activations are large, and so works as a gain control: with random signs
    and large batch norm weights a photograph of twice the contrast had 10 times the standard deviation after the
    backbone.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = rng.standard_normal(module.weight.shape)
            if name.endswith("se.conv_reduce"):
                weight = _GATE_GAIN * np.abs(weight) / np.abs(weight).sum(axis=1, keepdims=True)
            elif name.endswith("se.conv_expand"):
                weight = -3 * np.abs(weight) / np.abs(weight).sum(axis=1).mean()
            else:
                if weight.shape[1] > 1:
                    is_stem = weight.shape[2] > 1
                    weight -= (0.8 if is_stem else 1) * weight.mean(axis=(2, 3) if is_stem else 1, keepdims=True)
                weight /= math.sqrt(weight[0].size)
            _assign(module.weight, weight)
            if module.bias is not None:
                spread, mean = (0.5, 1.0) if name.endswith("se.conv_expand") else (0.3, 0.0)
                _assign(module.bias, rng.normal(mean, spread, module.bias.shape))
        elif isinstance(module, nn.BatchNorm2d):
            _assign(module.weight, rng.uniform(*_NORM_WEIGHTS, module.weight.shape))
            _assign(module.bias, rng.normal(0, _NORM_BIAS_STD, module.bias.shape))
        elif isinstance(getattr(module, "edge_weights", None), nn.Parameter):
            _assign(module.edge_weights, rng.uniform(0.5, 1.5, module.edge_weights.shape))


def _draw_hidden_layers(head: HeadNet, rng: np.random.Generator) -> None:
    """Make every hidden layer of an effdet `HeadNet` a layer of soft clips, see `_PAIR_SUBTRACTED`."""
    for repeat, (conv, norms) in enumerate(zip(head.conv_rep, norms_by_repeat(head), strict=True)):
        channels = conv.conv_pw.out_channels
        kernels = rng.normal(0, 0.2, (channels // 2, 1, 3, 3))
        kernels[:, :, 1, 1] += 1
        _assign(conv.conv_dw.weight, np.repeat(kernels, 2, axis=0))
        if repeat == 0:
            mixture = rng.standard_normal((channels // 2, channels))
            mixture -= mixture.mean(axis=1, keepdims=True)
        else:
            mixture = _of_pairs(rng.standard_normal((channels // 2, channels // 2)))
        _assign(conv.conv_pw.weight, _jittered(np.repeat(mixture / math.sqrt(channels), 2, axis=0), rng))
        for norm in norms:
            _assign(norm.weight, _CLIP_GAIN * np.repeat(rng.uniform(0.8, 1.2, channels // 2), 2))
            offsets = np.tile((_CLIP_OFFSET, -_CLIP_OFFSET), channels // 2)
            _assign(norm.bias, offsets + np.repeat(rng.normal(0, 0.2, channels // 2), 2))


def _normalise(
    model: EfficientDet, scenes: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Set all batch norm statistics in one pass, in which each layer already sees its predecessors' final ones.

    Returns:
        What the heads read; what the class head's last batch norms normalise, to mean 0 and variance 1 per channel;
        and the box head's outputs: all per level, of shape (N, C, H, W).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches; there is one
    inputs: list[torch.Tensor] = []
    features: list[torch.Tensor] = []
    last_norms = _last_norms(model.class_net)
    hooks = [norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for norm in last_norms]
    hooks.append(model.class_net.register_forward_pre_hook(lambda _, args: features.extend(args[0])))
    with torch.no_grad():
        _, boxes = model(scenes)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        norm.eval()
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            statistic.copy_(_rounded(statistic))
    return features, [nn.functional.batch_norm(x, None, None, training=True) for x in inputs], boxes


def _set_thresholds(norm: nn.BatchNorm2d, response: torch.Tensor, rate: float, rng: np.random.Generator) -> None:
    """Turn a level's last batch norm into soft steps between two quantiles of its normalised input.

    The quantiles are those of all channels together: a single one has too few responses in a handful of scenes.
    """
    channels = norm.num_features
    rate = min(rate, _LARGEST_OFF_SHARE * response[0, 0].numel() / _OFF_RATIO)
    of_pairs = response[:, ::2].flatten()
    off, on = (
        _rounded(of_pairs.topk(1 + int(positions * response.shape[0] * (channels // 2))).values[-1]).item()
        for positions in (rate * _OFF_RATIO, rate)
    )
    gains = _STEP / (on - off) * np.repeat(rng.uniform(0.9, 1.1, channels // 2), 2)
    _assign(norm.weight, gains)
    _assign(norm.bias, np.tile((_STEP, 0.0), channels // 2) - gains * on)


def _draw_class_outputs(predict: SeparableConv2d, rng: np.random.Generator) -> None:
    """Let each (anchor, class) output follow one pair of channels, and all others a little."""
    pairs = predict.conv_dw.in_channels // 2
    outputs = predict.conv_pw.out_channels
    kernels = 0.03 * np.abs(rng.standard_normal((pairs, 1, 3, 3)))
    kernels[:, :, 1, 1] = 1
    kernels /= kernels.sum(axis=(2, 3), keepdims=True)
    _assign(predict.conv_dw.weight, np.repeat(kernels, 2, axis=0))
    rank = rng.permutation(outputs)
    mixture = _MIXING * rng.standard_normal((outputs, pairs))
    mixture[np.arange(outputs), rank % pairs] += 1
    _assign(predict.conv_pw.weight, _jittered(_of_pairs(mixture * _LOGIT_RISE / _STEP), rng))
    drop = np.minimum(_DROP * rank + (rank / _PREFERRED) ** 2, _LARGEST_DROP)
    _assign(predict.conv_pw.bias, _OFF_LOGIT - drop + rng.normal(0, 0.3, outputs))


def _scenes(rng: np.random.Generator, config: InputConfig) -> torch.Tensor:
    """Normalised float64 pictures of shape (N, 3, height, width), of rising contrast; all but one are letterboxed.

    They are `dead_leaves`.
    """
    height, width = config.size
    count, longer = math.ceil(_CALIBRATION_PIXELS / (height * width)), max(config.size)
    pictures = np.stack([dead_leaves(rng, longer, contrast) for contrast in np.geomspace(0.12, 0.4, count)])
    pictures = (pictures[:, :height, :width] - config.mean) / config.std
    # The mean colour is 0, and not what rounding it to 8 bits leaves.
    fill = np.array(config.fill_color) / 255 - config.mean
    padding = np.where(np.abs(fill) < 0.5 / 255 + 1e-9, 0, fill / config.std)
    for index, share in enumerate(rng.uniform(0.55, 0.8, count)):
        shapes = (height, width), (int(height * share), width), (height, int(width * share))
        rows, columns = shapes[min(index, 1 + index % 2)]
        pictures[index, rows:] = padding
        pictures[index, :, columns:] = padding
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def _last_norms(head: HeadNet) -> list[nn.BatchNorm2d]:
    return norms_by_repeat(head)[-1]


def _rates(model: EfficientDet) -> tuple[float, ...]:
    """`_ON_RATES`; further levels, coarser still, are as the last one."""
    levels: int = model.config.num_levels
    return (*_ON_RATES, *_ON_RATES[-1:] * levels)[:levels]


def _of_pairs(weight: _Array) -> _Array:
    return np.stack([weight, -_PAIR_SUBTRACTED * weight], axis=-1).reshape(len(weight), -1)


def _jittered(weight: _Array, rng: np.random.Generator) -> _Array:
    return (weight * (1 + _PAIR_JITTER * rng.standard_normal(weight.shape)))[:, :, None, None]


def _rounded(statistic: torch.Tensor) -> torch.Tensor:
    """To float16's 11 bits: far coarser than what the order of a float64 sum changes, so it shows in one of 1e9."""
    return statistic.half().double()


def _assign(parameter: torch.Tensor, value: _Array) -> None:
    parameter.data.copy_(torch.from_numpy(value).reshape(parameter.shape))
