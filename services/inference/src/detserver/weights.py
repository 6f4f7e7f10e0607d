"""Weights of a detector: the user's file, else effdet's pretrained download, else calibrated random ones."""

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import effdet
import httpx
import torch
from effdet.efficientdet import EfficientDet
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import load_state_dict

from detserver import calibrate
from detserver.download import ChecksumMismatch, download
from detserver.errors import WeightsRefused
from detserver.zoo import ModelSpec, default_config

log = logging.getLogger(__name__)

Source = Literal["pretrained", "local", "random"]
StateDict = dict[str, torch.Tensor]

_SUFFIXES = (".safetensors", ".pth", ".pt")
_KEYS_SHOWN = 3


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


def create_model(spec: ModelSpec) -> EfficientDet:
    """effdet's network of `spec`, without its post-processing, with no weights of value; it asks no network."""
    return effdet.create_model(
        spec.architecture, bench_task="", num_classes=spec.num_classes, pretrained=False, pretrained_backbone=False
    )


class WeightsStore:
    """Finds the weights of each model once, and keeps them.

    Args:
        weights_dir: local and downloaded files.
        cache_dir: calibrated random weights are kept here, because calibration takes seconds.
        seed: of the random weights.
        allow_download: whether effdet's weights may be fetched.
        mirror: base URL of the weights files; None takes effdet's own.
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

    def _find(self, spec: ModelSpec) -> tuple[Source, StateDict]:
        local = self._local_file(spec)
        if local is not None:
            return "local", read_weights(local, spec)
        published = default_config(spec.architecture)
        if published.url and spec.num_classes == published.num_classes:
            pretrained = self._pretrained_file(published.url)
            if pretrained is not None:
                return "pretrained", read_weights(pretrained, spec)
        return "random", self._random(spec)

    def _local_file(self, spec: ModelSpec) -> Path | None:
        if spec.weights_file is not None:
            if not spec.weights_file.is_file():
                raise WeightsRefused(f"{spec.name}: there is no weights file {spec.weights_file}")
            return spec.weights_file
        names = [spec.name]
        if spec.num_classes == default_config(spec.architecture).num_classes:
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
        except (httpx.HTTPError, OSError) as error:
            log.warning(
                "no download of %s (%s): calibrated random weights instead", name, error or type(error).__name__
            )
            return None
        return path

    def _random(self, spec: ModelSpec) -> StateDict:
        seed = self._seed + spec.seed_offset
        recipe = hashlib.sha256(Path(calibrate.__file__).read_bytes())
        for package in ("torch", "effdet", "timm"):
            recipe.update(version(package).encode())
        name = f"{spec.architecture}_{spec.num_classes}_seed{seed}_{recipe.hexdigest()[:12]}.safetensors"
        path = self.cache_dir / "random-weights" / name
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            pass  # not made yet, or cut off by a full disk: made anew
        log.info("%s: calibrating random weights", spec.name)
        state_dict = calibrate.calibrated_state_dict(spec.architecture, spec.num_classes, seed)
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


def read_weights(path: Path, spec: ModelSpec) -> StateDict:
    """Read a `.pth` or `.safetensors` file in effdet's layout, EMA weights first where a checkpoint has them.

    Raises:
        WeightsRefused: not readable as weights alone (`weights_only=True`), not the model of `spec`, or not finite.
    """
    try:
        found: StateDict = load_state_dict(str(path), use_ema=True, device="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors raise classes of their own, with long texts
        reason = str(error).strip().split("\n")[0][:200]
        raise WeightsRefused(f"{path} cannot be read as weights of {spec.name} ({reason})") from error
    expected = create_model(spec).state_dict()
    _check(path, spec, expected, found)
    # Missing counters of training steps are the only difference that `_check` lets pass.
    return {key: found[key].to(value.dtype) if key in found else value for key, value in expected.items()}


def _check(path: Path, spec: ModelSpec, expected: StateDict, found: StateDict) -> None:
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
    if differences:
        raise WeightsRefused(
            f"{path} is not {spec.architecture} with {spec.num_classes} classes ({spec.name}): "
            f"{len(differences)} tensors differ, first {'; '.join(differences[:_KEYS_SHOWN])}. "
            "Put this model's weights there, or take the file away to use downloaded or random ones"
        )
    for key, value in found.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsRefused(f"{path}: {key} of {spec.name} holds a NaN or an infinity; the file is damaged")
