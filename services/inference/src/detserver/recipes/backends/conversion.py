"""Networks as other libraries take them, and their converted files, made once and kept in the cache folder."""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from effdet.efficientdet import EfficientDet
from torch import nn

from detserver.models.model_sets import ModelSpec
from detserver.models.weights import WeightsStore
from detserver.recipes.folding import fold_batch_norm
from detserver.recipes.plane_mean import with_accurate_means

log = logging.getLogger(__name__)

# Of what `FlatNetwork` makes of a network; another number, and every converted network is converted anew.
_CONVERSION = 4


class FlatNetwork(nn.Module):
    """A network ready for export: batch norms folded, means over a plane accurate, outputs in one tuple.

    Args:
        model: effdet's network on the CPU; it is changed.
    """

    def __init__(self, model: EfficientDet) -> None:
        super().__init__()
        self.model = with_accurate_means(fold_batch_norm(model))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The class logits of every level, then the box codes of every level, of pixels (B, 3, H, W)."""
        classes, boxes = self.model(pixels)
        return (*classes, *boxes)


@lru_cache(maxsize=16)
def exported(spec: ModelSpec, weights: WeightsStore) -> "torch.export.ExportedProgram":
    """The network of `spec`, as torch exports it, for batches of any size.

    Every backend converts the same one, so it is kept until somebody who has them all calls `exported.cache_clear()`.
    """
    example = torch.zeros(2, 3, *spec.input.size)  # two images: an export takes a size of one for a constant
    any_number = ({0: torch.export.Dim("batch")},)  # no constant: it imports sympy, which takes 3 s of a start
    return torch.export.export(FlatNetwork(weights.model(spec)).eval(), (example,), dynamic_shapes=any_number)


def cache_folder(backend: str, converter: str, spec: ModelSpec, weights: WeightsStore) -> Path:
    """Where the network of `spec` is kept for a backend, named by its weights and by what it is converted with.

    Args:
        converter: the package that converts what torch has exported.
    """
    versions = f"{converter}{version(converter)}_torch{version('torch')}_{_CONVERSION}"
    return weights.cache_dir / backend / f"{spec.identity}_{weights.get(spec).fingerprint[:16]}_{versions}"


def make_once(folder: Path, what: str, make: Callable[[Path], None]) -> None:
    """Let `make` fill `folder` where it is not there yet; other processes see it whole or not at all.

    Args:
        what: is made, for the log.
        make: is given an empty folder, which becomes `folder`.
    """
    if folder.is_dir():
        return
    log.info("%s, once per machine", what)
    start = time.perf_counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not named by the process: in a container that was killed meanwhile, the next one has the same id.
    temporary = Path(tempfile.mkdtemp(suffix=".partial", prefix=f"{folder.name}.", dir=folder.parent))
    try:
        make(temporary)
        temporary.chmod(0o755)  # mkdtemp's is for its owner alone
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("%s: %.0f s", what, time.perf_counter() - start)
