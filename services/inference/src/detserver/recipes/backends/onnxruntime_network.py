"""Networks through ONNX Runtime, on a CPU or by CUDA. An extra: `pip install 'detserver[onnxruntime]'`."""

import importlib
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detserver.errors import CannotRun
from detserver.models.model_sets import ModelSpec
from detserver.models.weights import WeightsStore
from detserver.postprocess import RawOutput
from detserver.recipes.backends.conversion import cache_folder, exported, make_once

_FILE = "network.onnx"


def unavailable_reason(device: torch.device) -> str | None:
    """Why ONNX Runtime cannot run on `device`, or None where it can."""
    if any(find_spec(package) is None for package in ("onnxruntime", "onnx", "onnxscript")):
        return "ONNX Runtime is not installed: pip install 'detserver[onnxruntime]'"
    if device.type == "cuda" and _provider(device) not in import_onnxruntime().get_available_providers():
        return "this ONNX Runtime has no CUDA: pip uninstall onnxruntime, then pip install onnxruntime-gpu"
    return None


def is_converted(spec: ModelSpec, weights: WeightsStore, precision: str) -> bool:  # noqa: ARG001 (the face of a backend)
    """Whether the cache has the exported network of `spec`."""
    return _folder(spec, weights).is_dir()


def prepare(spec: ModelSpec, weights: WeightsStore, precision: str) -> None:  # noqa: ARG001 (the face of a backend)
    """Import ONNX Runtime, and export the network of `spec` where the cache lacks it."""
    import_onnxruntime()
    file(spec, weights)


def network(spec: ModelSpec, weights: WeightsStore, precision: str, device: torch.device) -> "OnnxRuntimeNetwork":
    """The network of `spec` in a session on `device`.

    Args:
        precision: fp32.

    Raises:
        CannotRun: another precision, or CUDA that does not work.
    """
    if precision != "fp32":
        raise CannotRun(f"ONNX Runtime runs in fp32 here, not in {precision}")
    return OnnxRuntimeNetwork(file(spec, weights), device)


class OnnxRuntimeNetwork:
    """A network in an inference session, for batches of any size.

    Inputs and outputs are torch's memory, which ONNX Runtime reads and writes where it is.

    Args:
        file: the exported network.

    Attributes:
        precision: of the arithmetic.
        remark: what a person should know of how it runs.

    Raises:
        CannotRun: CUDA does not work.
    """

    precision = "fp32"
    remark = ""

    def __init__(self, file: Path, device: torch.device) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        self._stream: torch.cuda.Stream | None = None
        provider_options: dict[str, str] = {}
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            provider_options = {
                "device_id": str(self._stream.device.index),
                "user_compute_stream": str(self._stream.cuda_stream),
                "use_tf32": "0",
            }
        else:
            options.intra_op_num_threads = torch.get_num_threads()
            # Each session has threads of its own: one's would spin while the next one's work.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(file, options, providers=[(_provider(device), provider_options)])
        if self._session.get_providers()[0] != _provider(device):  # it would go on on the CPU
            raise CannotRun(f"ONNX Runtime cannot use {device}: its log names the library that it misses")
        self._outputs: list[torch.Tensor] = []

    def __call__(self, pixels: torch.Tensor) -> RawOutput:
        """Raw outputs, float32, of pixels (B, 3, H, W), float32; they are overwritten by the next call."""
        if not self._outputs or len(self._outputs[0]) != len(pixels):
            shapes = [(len(pixels), *output.shape[1:]) for output in self._session.get_outputs()]
            self._outputs = [pixels.new_empty(shape) for shape in shapes]
        pixels = pixels.contiguous()
        binding = self._session.io_binding()
        for argument in self._session.get_inputs():
            binding.bind_input(argument.name, *_place(pixels))
        for argument, tensor in zip(self._session.get_outputs(), self._outputs, strict=True):
            binding.bind_output(argument.name, *_place(tensor))
        if self._stream is None:
            self._session.run_with_iobinding(binding)
        else:
            torchs = torch.cuda.current_stream(pixels.device)
            self._stream.wait_stream(torchs)
            self._session.run_with_iobinding(binding)
            torchs.wait_stream(self._stream)
        levels = len(self._outputs) // 2
        return self._outputs[:levels], self._outputs[levels:]


def import_onnxruntime() -> Any:
    """The package, which is to send nothing to its makers."""
    onnxruntime = importlib.import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _provider(device: torch.device) -> str:
    return "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"


def _place(tensor: torch.Tensor) -> tuple[str, int, type[np.float32], tuple[int, ...], int]:
    """Where a tensor is, as `IOBinding` wants it."""
    return tensor.device.type, tensor.device.index or 0, np.float32, tuple(tensor.shape), tensor.data_ptr()


def file(spec: ModelSpec, weights: WeightsStore) -> Path:
    """The file of the exported network, made where the cache lacks it.

    It takes `pixels` (B, 3, H, W), and answers `classes_0`, … and `boxes_0`, …, of each level of its pyramid.
    """
    folder = _folder(spec, weights)

    def export(target: Path) -> None:
        for package in ("onnxscript", "onnx_ir"):  # a line for every constant that they put together
            logging.getLogger(package).setLevel(logging.WARNING)
        levels = range(spec.config().num_levels)
        names = [f"{what}_{level}" for what in ("classes", "boxes") for level in levels]
        program = torch.onnx.export(
            exported(spec, weights), dynamo=True, verbose=False, input_names=["pixels"], output_names=names
        )
        assert program is not None
        program.save(target / _FILE)

    make_once(folder, f"{spec.name}: exporting for ONNX Runtime", export)
    return folder / _FILE


def _folder(spec: ModelSpec, weights: WeightsStore) -> Path:
    return cache_folder("onnxruntime", "onnxscript", spec, weights)
