"""Networks through OpenVINO on the CPU. OpenVINO is an extra: `pip install 'detserver[openvino]'`."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from detserver.models.model_sets import ModelSpec
from detserver.models.weights import WeightsStore
from detserver.postprocess import RawOutput
from detserver.recipes.backends import quantization
from detserver.recipes.backends.conversion import cache_folder, exported, make_once

_FILE = "network.xml"

# INT8 stands in the converted network; what of it stays in floating point is in fp32.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_PRECISIONS = {hint: precision for precision, hint in _HINTS.items() if precision != "int8"}


def unavailable_reason(device: torch.device) -> str | None:
    """Why OpenVINO cannot run on `device`, or None where it can."""
    if device.type != "cpu":
        return "OpenVINO runs on the CPU; start the server with DETSERVER_DEVICE=cpu"
    if find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install 'detserver[openvino]'"
    return None


def is_converted(spec: ModelSpec, weights: WeightsStore, precision: str) -> bool:
    """Whether the cache has the converted network of `spec`, for INT8 the quantized one.

    Raises:
        CannotRun: see `prepare`.
    """
    return _folder(spec, weights, precision).is_dir()


def prepare(spec: ModelSpec, weights: WeightsStore, precision: str) -> None:
    """Import OpenVINO, and convert the network of `spec`, for INT8 quantize it too, where the cache lacks it.

    Raises:
        CannotRun: INT8, and there are no photographs to calibrate with.
    """
    _converted(spec, weights, precision)


def network(spec: ModelSpec, weights: WeightsStore, precision: str, device: torch.device) -> "OpenVinoNetwork":  # noqa: ARG001 (the face of a backend)
    """The network of `spec` compiled for this CPU.

    Args:
        precision: fp32, bf16, fp16 or int8.

    Raises:
        CannotRun: see `prepare`.
    """
    remark = f"calibrated with {_photos(weights)}" if precision == "int8" else ""
    return OpenVinoNetwork(_converted(spec, weights, precision), spec, precision, remark)


class OpenVinoNetwork:
    """A compiled network for one image at a time, with as many threads as torch has.

    Args:
        file: the converted network.
        precision: of the arithmetic: fp32, bf16, fp16 or int8. OpenVINO keeps to fp32 on a CPU without bf16 or fp16.
        remark: see below; empty where there is nothing to say.

    Attributes:
        precision: of the arithmetic that really runs.
        remark: what a person should know of how it runs.
    """

    def __init__(self, file: Path, spec: ModelSpec, precision: str, remark: str) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        graph = core.read_model(file)
        graph.reshape([1, 3, *spec.input.size])  # a fixed shape runs in 0.86 of the time of a free one
        self._compiled: Any = core.compile_model(
            graph,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            },
        )
        self._levels = len(self._compiled.outputs) // 2
        runs = _PRECISIONS[self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()]
        self.precision = precision if precision == "int8" else runs
        self.remark = remark
        if self.precision != precision:
            self.remark = f"in {runs}: OpenVINO has no {precision} on this CPU"

    def __call__(self, pixels: torch.Tensor) -> RawOutput:
        """Raw outputs, float32, of pixels (1, 3, H, W), float32; they are overwritten by the next call."""
        found = self._compiled(pixels.numpy(), share_inputs=True, share_outputs=True)
        tensors = [torch.from_numpy(found[port]) for port in self._compiled.outputs]
        return tensors[: self._levels], tensors[self._levels :]


def import_openvino() -> Any:
    """The package, without what it would send to its makers at each conversion: without this module it has a stub."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _photos(weights: WeightsStore) -> quantization.Photos:
    return quantization.calibration_photos(weights.cache_dir.parent)


def _converted(spec: ModelSpec, weights: WeightsStore, precision: str) -> Path:
    """The file of the converted network, made where the cache lacks it."""
    openvino = import_openvino()
    folder = _folder(spec, weights, "fp32")

    def convert(target: Path) -> None:
        network = openvino.convert_model(exported(spec, weights))
        # Not to float16, which is OpenVINO's default for a file.
        openvino.save_model(network, target / _FILE, compress_to_fp16=False)

    make_once(folder, f"{spec.name}: converting for OpenVINO", convert)
    if precision != "int8":
        return folder / _FILE
    photos = _photos(weights)
    quantized = _folder(spec, weights, precision)

    def quantize(target: Path) -> None:
        graph = openvino.Core().read_model(folder / _FILE)
        graph.reshape([1, 3, *spec.input.size])
        openvino.save_model(quantization.quantized(graph, spec, photos), target / _FILE, compress_to_fp16=False)

    make_once(quantized, f"{spec.name}: quantizing with {photos}", quantize)
    return quantized / _FILE


def _folder(spec: ModelSpec, weights: WeightsStore, precision: str) -> Path:
    """Where the converted network is kept; all precisions but INT8 run the same one."""
    folder = cache_folder("openvino", "openvino", spec, weights)
    if precision != "int8":
        return folder
    return folder.with_name(f"{folder.name}_{quantization.identity(_photos(weights))}")
