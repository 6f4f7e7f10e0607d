"""Weights of a detector: the user's file, else effdet's pretrained download, else calibrated random ones."""

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from effdet.efficientdet import EfficientDet
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from detserver.errors import WeightsRefused
from detserver.models import calibrate
from detserver.models.checkpoint import StateDict, read_checkpoint
from detserver.models.configuration import published_weights, takes_published_weights
from detserver.models.model_sets import ModelSpec, create_model

log = logging.getLogger(__name__)

Source = Literal["pretrained", "local", "random"]

_SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Weights:
    """A checked state dict in effdet's layout.

    Attributes:
        state_dict: float32 on the CPU; shared, so never written to.
        source: where it comes from.
        fingerprint: SHA-256 of all names and values, hex: equal for equal weights, whatever file they came in.
    """

    state_dict: StateDict
    source: Source
    fingerprint: str


class WeightsStore:
    """Finds the weights of each model once, and keeps them.

    The first download that finds no network is the last one that is tried. A store that was pickled, for another
    process, has found nothing yet.

    Args:
        weights_dir: local and downloaded files.
        cache_dir: calibrated random weights are kept here, because calibration takes seconds.
        seed: of the random weights.
        allow_download: whether effdet's weights may be fetched.
        mirror: base URL of the weights files; None or empty takes effdet's own.
    """

    def __init__(
        self, weights_dir: Path, cache_dir: Path, seed: int, allow_download: bool = True, mirror: str | None = None
    ) -> None:
        self._weights_dir = weights_dir
        self.cache_dir = cache_dir
        self._seed = seed
        self._allow_download = allow_download
        self._mirror = mirror
        self._found: dict[ModelSpec, Weights] = {}

    def __reduce__(self) -> tuple[type["WeightsStore"], tuple[object, ...]]:
        arguments = (self._weights_dir, self.cache_dir, self._seed, self._allow_download, self._mirror)
        return WeightsStore, arguments

    def known(self, spec: ModelSpec) -> Weights | None:
        """The weights of `spec` if they were found before."""
        return self._found.get(spec)

    def get(self, spec: ModelSpec) -> Weights:
        """The weights of `spec`; the first call may read, download or calibrate, which takes seconds.

        Raises:
            WeightsRefused: a file is not this model's, or a download has the wrong checksum.
        """
        if spec not in self._found:
            source, state_dict = self._find(spec)
            self._found[spec] = Weights(state_dict, source, fingerprint(state_dict))
            log.info("%s: %s weights %s", spec.name, source, self._found[spec].fingerprint[:12])
        return self._found[spec]

    def model(self, spec: ModelSpec) -> EfficientDet:
        """A new network with the weights of `spec`, on the CPU, in evaluation mode, without gradients."""
        model = create_model(spec)
        model.load_state_dict(self.get(spec).state_dict)
        return model.eval().requires_grad_(False)

    def cached_files(self) -> set[Path]:
        """What lies in the cache folder now."""
        # Not by pathlib: another process may remove a folder in the meantime, which `os.walk` passes over.
        return {Path(folder, name) for folder, _, names in os.walk(self.cache_dir) for name in names}

    def _find(self, spec: ModelSpec) -> tuple[Source, StateDict]:
        local = self._local_file(spec)
        if local is not None:
            return "local", read_checkpoint(local, spec)
        url, num_classes = published_weights(spec.architecture)
        if url and spec.num_classes == num_classes and takes_published_weights(spec.overrides):
            pretrained = self._pretrained_file(url)
            if pretrained is not None:
                return "pretrained", read_checkpoint(pretrained, spec)
        return "random", self._random(spec)

    def _local_file(self, spec: ModelSpec) -> Path | None:
        if spec.weights_file is not None:
            if not spec.weights_file.is_file():
                raise WeightsRefused(f"{spec.name}: there is no weights file {spec.weights_file}")
            return spec.weights_file
        names = [spec.name]
        _, num_classes = published_weights(spec.architecture)
        if spec.num_classes == num_classes and takes_published_weights(spec.overrides):
            names.append(spec.architecture)
        candidates = (self._weights_dir / f"{name}{suffix}" for name in names for suffix in _SUFFIXES)
        return next((path for path in candidates if path.is_file()), None)

    def _pretrained_file(self, url: str) -> Path | None:
        """effdet's file, fetched if it is not here; None where it cannot be had."""
        name = url.rsplit("/", 1)[-1]
        path = self._weights_dir / name
        if path.is_file():
            return path
        if not self._allow_download:
            return None
        # It needs httpx, which takes half a second to import.
        from detserver.models.download import ChecksumMismatch, DownloadFailed, Unreachable, download

        # effdet's file names end with the first digits of their SHA-256, as torch.hub's do.
        checksum = re.search(r"-([0-9a-f]{8,})\.\w+$", name)
        source = f"{self._mirror.rstrip('/')}/{name}" if self._mirror else url
        log.info("downloading %s", source)
        try:
            download(source, path, sha256_prefix=checksum[1] if checksum else "")
        except ChecksumMismatch as error:
            raise WeightsRefused(
                f"{error}; try again, or set DETSERVER_WEIGHTS_DOWNLOAD=false to run on random weights"
            ) from error
        except Unreachable as error:
            self._allow_download = False
            log.warning("no download of pretrained weights (%s): calibrated random ones, all models", error)
            return None
        except (DownloadFailed, OSError) as error:
            log.warning("no download of %s (%s): calibrated random weights instead", name, error)
            return None
        return path

    def _random(self, spec: ModelSpec) -> StateDict:
        seed = self._seed + spec.seed_offset
        recipe = hashlib.sha256(Path(calibrate.__file__).read_bytes())
        for package in ("torch", "effdet", "timm"):
            recipe.update(version(package).encode())
        name = f"{spec.identity}_seed{seed}_{recipe.hexdigest()[:12]}.safetensors"
        path = self.cache_dir / "random-weights" / name
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            pass  # not made yet, or cut off by a full disk: made anew
        log.info("%s: calibrating random weights", spec.name)
        state_dict = calibrate.calibrated_state_dict(spec, seed)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.partial")
            save_file({key: value.contiguous() for key, value in state_dict.items()}, temporary)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            log.warning("the random weights were not cached: %s", error)
        return state_dict


def fingerprint(state_dict: StateDict) -> str:
    """SHA-256 over names, dtypes, shapes and values, hex.

    `num_batches_tracked` is left out: it counts training steps, and files differ in whether they have it.
    """
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        if not key.endswith("num_batches_tracked"):
            value = state_dict[key]
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
