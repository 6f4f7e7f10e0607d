"""Networks through OpenVINO on the CPU. OpenVINO is an extra: `pip install 'detserver[openvino]'`."""

import importlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from effdet.efficientdet import EfficientDet
from torch import nn

from detserver.models.model_sets import ModelSet, ModelSpec
from detserver.models.weights import WeightsStore
from detserver.postprocess import RawOutput
from detserver.preprocess import InputConfig
from detserver.recipes.folding import fold_batch_norm
from detserver.recipes.plane_mean import with_accurate_means

log = logging.getLogger(__name__)

# Of what `_convert` makes of a network; another number, and kept ones are converted anew.
_CONVERSION = 2

_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def unavailable_reason(device: torch.device) -> str | None:
    """Why OpenVINO cannot run on `device`, or None where it can."""
    if device.type != "cpu":
        return "OpenVINO runs on the CPU; start the server with DETSERVER_DEVICE=cpu"
    if find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install 'detserver[openvino]'"
    return None


def prepare(model_set: ModelSet, weights: WeightsStore) -> None:
    """Import OpenVINO, and convert those of a set's networks that are not kept in the cache yet."""
    _openvino()
    for spec in model_set.models:
        folder = _folder(spec, weights)
        if not _file(folder).is_file():
            _convert(weights.model(spec), spec.name, folder)


def openvino_networks(
    model_set: ModelSet, models: Sequence[EfficientDet], weights: WeightsStore, dtype: torch.dtype
) -> list[tuple[InputConfig, "OpenVinoNetwork"]]:
    """A set's networks with their input configurations, each for one image; `models` are changed."""
    return [
        (spec.input, OpenVinoNetwork(model, spec.name, _folder(spec, weights), dtype))
        for spec, model in zip(model_set.models, models, strict=True)
    ]


class OpenVinoNetwork:
    """A compiled network for batches of one image.

    Args:
        model: effdet's network; it is changed.
        name: for the log.
        folder: keeps the converted network; where it exists already the conversion, which takes seconds, is left out.
        dtype: of the arithmetic. OpenVINO keeps to float32 on a CPU without bfloat16.

    Attributes:
        precision: of the arithmetic, as OpenVINO has chosen: f32, bf16.
    """

    def __init__(self, model: EfficientDet, name: str, folder: Path, dtype: torch.dtype) -> None:
        openvino = _openvino()
        path = _file(folder)
        if not path.is_file():
            _convert(model, name, folder)
        core = openvino.Core()
        network = core.read_model(path)
        network.reshape([1, 3, *model.config.image_size])  # a fixed shape runs in 0.86 of the time of a free one
        self._levels = model.config.num_levels
        self._compiled: Any = core.compile_model(
            network,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            },
        )

        self.precision: str = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def __call__(self, pixels: torch.Tensor) -> RawOutput:
        """Raw outputs of pixels (1, 3, height, width); they are overwritten by the next call."""
        found = self._compiled(pixels.float().numpy(), share_inputs=True, share_outputs=True)
        tensors = [torch.from_numpy(found[port]) for port in self._compiled.outputs]
        return tensors[: self._levels], tensors[self._levels :]


def _folder(spec: ModelSpec, weights: WeightsStore) -> Path:
    versions = f"openvino{version('openvino')}_torch{version('torch')}_{_CONVERSION}"
    identity = f"{spec.identity}_{weights.get(spec).fingerprint[:16]}_{versions}"
    return weights.cache_dir / "openvino" / identity


def _file(folder: Path) -> Path:
    return folder / "network.xml"


def _openvino() -> Any:
    """The package, without what it would send to its makers at each conversion: without this module it has a stub."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


class _Flat(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        classes, boxes = self.model(pixels)
        return (*classes, *boxes)


def _convert(model: EfficientDet, name: str, folder: Path) -> None:
    openvino = _openvino()
    log.info("%s: converting for OpenVINO, once per machine", name)
    start = time.perf_counter()
    exported = torch.export.export(
        _Flat(with_accurate_means(fold_batch_norm(model))).eval(), (torch.zeros(1, 3, *model.config.image_size),)
    )
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    temporary.mkdir(parents=True)
    try:
        # Not to float16, which is OpenVINO's default for a file.
        openvino.save_model(openvino.convert_model(exported), _file(temporary), compress_to_fp16=False)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("%s: converted in %.0f s", name, time.perf_counter() - start)
