"""INT8 by post-training quantization with NNCF. An extra: `pip install 'detserver[openvino-int8]'`.

Weights become INT8 per channel; the ranges of the activations come from photographs that run through the network.
"""

import contextlib
import hashlib
import importlib
import io
import logging
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detserver.errors import CannotRun, DetserverError
from detserver.models.model_sets import ModelSpec
from detserver.preprocess import prepare
from detserver.preprocess.decoding import decode

log = logging.getLogger(__name__)

_AT_MOST = 100  # photographs; NNCF itself takes 300, and the error is the same
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_MAX_PIXELS = 50_000_000
# Of what is kept in floating point; another number, and networks are quantized anew.
_SCOPE = 1


@dataclass(frozen=True)
class Photos:
    """The photographs that INT8 is calibrated with.

    Attributes:
        files: in the order of their names.
        found: how many there were to choose from.
    """

    files: tuple[Path, ...]
    found: int

    def __str__(self) -> str:
        counts = Counter(file.parent.parent.name for file in self.files)
        of = "" if self.found == len(self.files) else f" of {self.found}"
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        return f"{len(self.files)}{of} photographs ({listed})"


def unavailable_reason() -> str | None:
    """Why nothing can be quantized here, or None where it can."""
    if find_spec("nncf") is None:
        return "NNCF is not installed: pip install 'detserver[openvino-int8]'"
    return None


def calibration_photos(data_dir: Path) -> Photos:
    """At most 100 photographs, evenly spread over the files `<data_dir>/<dataset>/images/*`, sorted.

    Raises:
        CannotRun: there are none.
    """
    found = sorted(
        file for file in data_dir.glob("[!.]*/images/[!.]*") if file.suffix.lower() in _SUFFIXES and file.is_file()
    )
    if not found:
        raise CannotRun(
            f"INT8 is calibrated with photographs, and there are none in {data_dir}/<dataset>/images: "
            "run `detbench datasets sample`, or put some of your own there"
        )
    chosen = found if len(found) <= _AT_MOST else [found[i * len(found) // _AT_MOST] for i in range(_AT_MOST)]
    return Photos(tuple(chosen), len(found))


def identity(photos: Photos) -> str:
    """Equal for equal photographs and an equal NNCF, for names of files; by names and sizes, not by content."""
    digest = hashlib.sha256()
    for file in photos.files:
        digest.update(f"{file.parent.parent.name}/{file.name} {file.stat().st_size}\n".encode())
    return f"nncf{version('nncf')}_{_SCOPE}_{digest.hexdigest()[:12]}"


def quantized(network: Any, spec: ModelSpec, photos: Photos) -> Any:
    """An OpenVINO network in INT8, except for what `_kept_in_float` names.

    Args:
        network: of `spec`, in float32, for one image; it is not changed.

    Raises:
        CannotRun: no photograph can be read.
    """
    nncf = importlib.import_module("nncf")
    nncf.set_log_level(logging.WARNING)

    def pixels(file: Path) -> npt.NDArray[np.float32]:
        prepared = prepare(decode(file.read_bytes(), _MAX_PIXELS), [spec.input])
        return prepared.inputs[spec.input].pixels[None].numpy()

    def is_readable(file: Path) -> bool:
        try:
            pixels(file)
        except (DetserverError, OSError) as error:
            log.warning("%s is not calibrated with %s: %s", spec.name, file, error)
            return False
        return True

    readable = [file for file in photos.files if is_readable(file)]
    if not readable:
        raise CannotRun(f"INT8 is calibrated with photographs, and none of {photos} can be read")
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        return nncf.quantize(
            network,
            nncf.Dataset(readable, pixels),
            preset=nncf.QuantizationPreset.MIXED,  # activations asymmetric: SiLU's are
            subset_size=len(readable),
            ignored_scope=nncf.IgnoredScope(names=sorted(_kept_in_float(network))),
        )


def _kept_in_float(network: Any) -> set[str]:
    """The names of the layers that lose too much in INT8: the first ones, at half the input's size, and both heads.

    With them in INT8 too a trained detector (tf_efficientdet_lite0, 63 photographs) has mAP 0.106 instead of 0.119, and
    D0 is no faster. The depthwise convolution behind the stem has channels of very different ranges.
    """
    height = network.input().get_shape()[2]
    convolutions = [node for node in network.get_ordered_ops() if "Convolution" in node.get_type_name()]
    names = {node.get_friendly_name() for node in convolutions if node.get_output_shape(0)[2] * 2 >= height}
    for result in network.get_results():
        source = result.input_value(0)
        while len(source.get_target_inputs()) == 1:  # both heads take a feature map
            names.add(source.get_node().get_friendly_name())
            source = source.get_node().input_value(0)
    return names
