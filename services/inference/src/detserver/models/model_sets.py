"""Model sets: which detectors run on every image. Built in are `mixed` and `uniform`; a TOML file adds more.

[[model_sets.fishery.models]]
architecture = "tf_efficientdet_d0"   # any name that effdet knows
num_classes = 7
weights = "fish.pth"                  # optional; looked for beside this file, then in <data_dir>/weights
name = "fish"                         # optional; what the answers call it
image_size = [512, 768]               # optional, as all keys of effdet's configuration that the checkpoint was trained
anchor_scale = 3.0                    # with and the architecture has otherwise (`detserver.models.configuration`)
"""

import functools
import hashlib
import math
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from effdet import EfficientDet
from effdet.anchors import Anchors
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from detserver.errors import BadConfiguration, UnknownModelSet
from detserver.models import configuration
from detserver.models.configuration import ARCHITECTURES, Overrides, OverridesEntry
from detserver.preprocess import InputConfig


@dataclass(frozen=True)
class ModelSpec:
    """One detector of a set.

    Attributes:
        name: unique in its set; what answers, metrics and reports call it.
        architecture: effdet's name.
        num_classes: of its head; labels are 1..num_classes.
        weights_file: the user's own weights; None looks for the usual ones (`detserver.models.weights`).
        seed_offset: added to the seed of the random weights. Members of one architecture differ by it, and each
            built-in model has one with which `tests/test_calibrate.py` passes.
        overrides: what of effdet's configuration is not the architecture's own.
    """

    name: str
    architecture: str
    num_classes: int
    weights_file: Path | None = None
    seed_offset: int = 0
    overrides: Overrides = ()

    def config(self) -> Any:
        """A new effdet configuration, which is the caller's to change; effdet takes 5 ms."""
        return configuration.effdet_config(self.architecture, self.num_classes, self.overrides)

    @functools.cached_property
    def input(self) -> InputConfig:
        """What the network takes."""
        return configuration.input_config(self.config())

    @property
    def identity(self) -> str:
        """Equal for models of equal architecture, classes and configuration; for names of files."""
        changed = f"_{hashlib.sha256(repr(self.overrides).encode()).hexdigest()[:12]}" if self.overrides else ""
        return f"{self.architecture}_{self.num_classes}{changed}"


@dataclass(frozen=True)
class ModelSet:
    """The detectors that run on every image, in the order of the answers."""

    name: str
    models: tuple[ModelSpec, ...]

    @functools.cached_property
    def inputs(self) -> tuple[InputConfig, ...]:
        """The distinct inputs of its models."""
        return tuple(dict.fromkeys(model.input for model in self.models))


def create_model(spec: ModelSpec) -> EfficientDet:
    """effdet's network of `spec`, without its post-processing, with no weights of value; it asks no network."""
    return configuration.build(spec.config())


MODEL_SETS_FILE = Path("models/model_sets.toml")
"""Below the data folder: a user's own model sets, with their weights files beside it."""

BUILT_IN = (
    ModelSet(
        "mixed",
        (
            ModelSpec("tf_efficientdet_d0", "tf_efficientdet_d0", 90),
            ModelSpec("tf_efficientdet_d1", "tf_efficientdet_d1", 90),
            ModelSpec("tf_efficientdet_d2", "tf_efficientdet_d2", 90, seed_offset=1),
        ),
    ),
    ModelSet(
        "uniform",
        tuple(
            ModelSpec(f"tf_efficientdet_d0_{classes}", "tf_efficientdet_d0", classes, seed_offset=offset)
            for classes, offset in ((90, 0), (7, 9), (20, 1))
        ),
    ),
)


class _ModelEntry(OverridesEntry):
    architecture: str
    num_classes: Annotated[int, Field(ge=1, le=10_000)]
    weights: Path | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None


class _SetEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: Annotated[list[_ModelEntry], Field(min_length=1, max_length=64)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model_sets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")], _SetEntry]


def read_model_sets(path: Path, weights_dir: Path) -> list[ModelSet]:
    """Read a TOML file of model sets.

    Args:
        weights_dir: where weights files are looked for that are not beside the TOML file.

    Raises:
        BadConfiguration: not readable, not of the form above, an architecture that effdet does not know, a
            configuration that effdet cannot build, weights that are not there, or a name that stands twice.
    """
    try:
        entries = _File.model_validate(tomllib.loads(path.read_text())).model_sets
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfiguration(f"{path}: {error}") from error
    except ValidationError as error:
        raise BadConfiguration(f"{path}: {_first_problem(error.errors())}") from error
    return [_model_set(path, name, entry.models, weights_dir) for name, entry in entries.items()]


def _first_problem(errors: list[ErrorDetails]) -> str:
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden" and "models" in first["loc"]:
        return f"{where}: there is no such key; there are {', '.join(_ModelEntry.model_fields)}"
    return f"{where}: {first['msg']}"


def _model_set(path: Path, set_name: str, entries: list[_ModelEntry], weights_dir: Path) -> ModelSet:
    models = []
    architectures = Counter(entry.architecture for entry in entries)
    for index, entry in enumerate(entries):
        where = f"{path}: model_sets.{set_name}.models.{index}"
        if entry.architecture not in ARCHITECTURES:
            known = ", ".join(name for name in ARCHITECTURES if name.startswith("tf_efficientdet_d"))
            raise BadConfiguration(
                f"{where}.architecture: effdet has no model {entry.architecture!r}; among others it has {known}"
            )
        repeated = architectures[entry.architecture] > 1
        name = entry.name or (f"{entry.architecture}_{entry.num_classes}" if repeated else entry.architecture)
        spec = ModelSpec(
            name,
            entry.architecture,
            entry.num_classes,
            None if entry.weights is None else _weights_file(where, entry.weights, (path.parent, weights_dir)),
            seed_offset=index,
            overrides=configuration.overrides(entry.architecture, entry.model_dump(include={*configuration.KEYS})),
        )
        _check_configuration(where, spec)
        models.append(spec)
    name, count = Counter(model.name for model in models).most_common(1)[0]
    if count > 1:
        raise BadConfiguration(f"{path}: {set_name} has {count} models called {name}; give each a `name`")
    return ModelSet(set_name, tuple(models))


def _weights_file(where: str, name: Path, folders: tuple[Path, ...]) -> Path:
    candidates = list(dict.fromkeys(folder / name for folder in folders))
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise BadConfiguration(f"{where}.weights: there is no file {' and no file '.join(map(str, candidates))}")
    return found


def _check_configuration(where: str, spec: ModelSpec) -> None:
    """Build the network and run it on no image, so that effdet objects now and not at a request.

    Not on the device `meta`, for whose operators torch imports its compiler: five seconds of a server's start.
    """
    if not spec.overrides:
        return
    try:
        with torch.inference_mode():
            _, boxes = create_model(spec).eval()(torch.empty(0, 3, *spec.input.size))
        found, expected = (
            sum(math.prod(level.shape[1:]) // 4 for level in boxes),
            len(Anchors.from_config(spec.config()).boxes),
        )
        if found != expected:
            raise ValueError(f"the network answers {found} boxes for {expected} anchors")
    except Exception as error:  # effdet, timm and torch raise classes of their own, or assert
        keys = ", ".join(key for key, _ in spec.overrides)
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise BadConfiguration(f"{where}: effdet cannot run {spec.architecture} with this {keys}: {reason}") from error


class Zoo:
    """The model sets that a server knows.

    Args:
        model_sets_file: a user's own; None takes `MODEL_SETS_FILE` in `data_dir` where it is.
        data_dir: see `Settings.data_dir`.

    Raises:
        BadConfiguration: see `read_model_sets`.
    """

    def __init__(self, model_sets_file: Path | None, data_dir: Path) -> None:
        usual = data_dir / MODEL_SETS_FILE
        path = model_sets_file or (usual if usual.exists() else None)
        own = read_model_sets(path, data_dir / "weights") if path else []
        self.model_sets = {model_set.name: model_set for model_set in (*BUILT_IN, *own)}

    def model_set(self, name: str) -> ModelSet:
        """The set called `name`.

        Raises:
            UnknownModelSet: there is none; the message lists those there are.
        """
        if name not in self.model_sets:
            raise UnknownModelSet(f"no model set {name!r}; there are {', '.join(self.model_sets)}")
        return self.model_sets[name]
