"""A model repository for Triton: `python -m detserver.export DIR --model-set mixed`.

    DIR/README.md
        tf_efficientdet_d0/config.pbtxt
                           1/model.onnx
        …

Each detector is a model of its own, as ONNX Runtime runs it here. A detserver does more than these networks: decoding,
letterbox, boxes from their codes, NMS. What comes in and goes out of them stands in the README that is written.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic_settings import CliApp

from detserver import lean_imports

lean_imports.install()

from detserver.errors import BadConfiguration, CannotRun, DetserverError  # noqa: E402 (lean imports come first)
from detserver.models.model_sets import ModelSet, ModelSpec, Zoo  # noqa: E402
from detserver.models.weights import WeightsStore  # noqa: E402
from detserver.recipes.backends import onnxruntime_network  # noqa: E402
from detserver.settings import Settings  # noqa: E402


def export(
    folder: Path, model_set: ModelSet, weights: WeightsStore, max_batch_size: int, queue_delay_us: int, instances: int
) -> list[Path]:
    """Write the repository.

    Args:
        folder: is made; nothing that it holds already is written over.
        max_batch_size: of Triton's dynamic batching.
        queue_delay_us: how long a request waits there for others.
        instances: of each model on each device.

    Returns:
        The folders of the models.

    Raises:
        BadConfiguration: a model of one of the names is there already, or the folder cannot be written.
        CannotRun: ONNX Runtime, which networks are exported for, is not installed.
    """
    if reason := onnxruntime_network.unavailable_reason(torch.device("cpu")):
        raise CannotRun(reason)
    for spec in model_set.models:
        if (folder / spec.name).exists():
            raise BadConfiguration(f"{folder / spec.name} is there already; name another folder, or remove it")
    try:
        models = [
            _write(folder / spec.name, spec, weights, (max_batch_size, queue_delay_us, instances))
            for spec in model_set.models
        ]
        (folder / "README.md").write_text(_readme(model_set, weights))
    except OSError as error:
        raise BadConfiguration(f"{folder} cannot be written: {error}") from error
    return models


def _write(folder: Path, spec: ModelSpec, weights: WeightsStore, batching: tuple[int, int, int]) -> Path:
    source = onnxruntime_network.file(spec, weights)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:  # so that it is whole, or not there
        new = Path(temporary) / "model"
        (new / "1").mkdir(parents=True)
        shutil.copy(source, new / "1" / "model.onnx")
        (new / "config.pbtxt").write_text(_config(spec, _tensors(source), *batching))
        new.rename(folder)
    return folder


def _tensors(file: Path) -> list[tuple[str, list[int]]]:
    """Names and shapes, without the batch, of the input and the outputs of a network."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    return [
        (each.name, [dimension.dim_value for dimension in each.type.tensor_type.shape.dim[1:]])
        for each in (*graph.input, *graph.output)
    ]


def _config(
    spec: ModelSpec,
    tensors: Sequence[tuple[str, list[int]]],
    max_batch_size: int,
    queue_delay_us: int,
    instances: int,
) -> str:
    """Triton's configuration of a model, as protobuf's text format."""

    def described(each: tuple[str, list[int]]) -> str:
        name, shape = each
        return f'  {{ name: "{name}" data_type: TYPE_FP32 dims: {shape} }}'

    sizes = [1 << power for power in range(1, max_batch_size.bit_length()) if 1 << power <= max_batch_size]
    pixels, *outputs = map(described, tensors)
    return "\n".join(
        [
            f'name: "{spec.name}"',
            'platform: "onnxruntime_onnx"',
            f"max_batch_size: {max_batch_size}",
            "input [",
            pixels,
            "]",
            "output [",
            ",\n".join(outputs),
            "]",
            f"dynamic_batching {{ preferred_batch_size: {sizes} max_queue_delay_microseconds: {queue_delay_us} }}",
            f"instance_group [ {{ count: {instances} kind: KIND_AUTO }} ]",
            "",
        ]
    )


def _readme(model_set: ModelSet, weights: WeightsStore) -> str:
    rows = []
    for spec in model_set.models:
        height, width = spec.input.size
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (spec.input.mean, spec.input.std))
        found = weights.get(spec)
        rows.append(
            f"| {spec.name} | {spec.architecture}, {spec.num_classes} classes | {height}x{width} | {mean} | {std} | "
            f"{found.source} {found.fingerprint[:12]} |"
        )
    settings = {spec.name: _postprocessing(spec) for spec in model_set.models}
    return _README.format(
        model_set=model_set.name, rows="\n".join(rows), settings=json.dumps(settings, indent=1, default=list)
    )


def _postprocessing(spec: ModelSpec) -> dict[str, Any]:
    config = spec.config()
    return {
        name: getattr(config, name)
        for name in (
            *("min_level", "max_level", "num_scales", "aspect_ratios", "anchor_scale"),
            *("max_detection_points", "max_det_per_image"),
        )
    }


_README = """\
# `{model_set}` for Triton

Written by `detbench export --to triton`. Start it: `tritonserver --model-repository=THIS_FOLDER`.

| model | architecture | input (h x w) | mean | std | weights |
| --- | --- | --- | --- | --- | --- |
{rows}

Every model takes `pixels`, FP32 [3, h, w]: the picture resized so that it fits, padded at the bottom and the right,
divided by 255, less the mean, divided by the standard deviation. It answers, for the levels of its pyramid (3 to 7),
`classes_0` to `classes_4`, the logits of every class at every anchor, and `boxes_0` to `boxes_4`, the codes of the
boxes (ty, tx, th, tw). What makes detections of them, as detserver does: the sigmoid of the `max_detection_points`
largest logits, boxes from their anchors, NMS by class at an IoU of 0.5, the best `max_det_per_image`, and from the
input's pixels back to the picture's (effdet's `_post_process` and `generate_detections`).

As effdet configures it:

```json
{settings}
```
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Export what the command line says; returns the exit status, 2 where it cannot be done."""
    parser = argparse.ArgumentParser(
        description="Write a Triton model repository of a model set; the settings of a detserver count (DETSERVER_*)."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model-set", required=True)
    parser.add_argument("--max-batch-size", type=int, default=8)
    parser.add_argument("--queue-delay-us", type=int, default=0)
    parser.add_argument("--instances", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    settings = CliApp.run(Settings, cli_args=[])
    try:
        model_set = Zoo(settings.model_sets_file, settings.data_dir).model_set(options.model_set)
        weights = WeightsStore(
            settings.weights_dir, settings.cache_dir, settings.seed, settings.weights_download, settings.weights_url
        )
        batching = (options.max_batch_size, options.queue_delay_us, options.instances)
        for model in export(options.folder, model_set, weights, *batching):
            sys.stdout.write(f"{model}\n")
    except DetserverError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
