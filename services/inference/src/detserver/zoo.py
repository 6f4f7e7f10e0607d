"""Model sets: which detectors run on every image. Built in are `mixed` and `uniform`; a TOML file adds more.

[[model_sets.fishery.models]]
architecture = "tf_efficientdet_d0"   # any name that effdet knows
num_classes = 7
weights = "fish.pth"                  # optional; relative to <data_dir>/weights
name = "fish"                         # optional; what the answers call it
"""

import functools
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from effdet import get_efficientdet_config
from effdet.config.model_config import efficientdet_model_param_dict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detserver.errors import BadConfiguration, UnknownModelSet


@dataclass(frozen=True)
class DefaultConfig:
    """What effdet's configuration says of an architecture.

    Attributes:
        image_size: side of the square network input, pixels.
        num_classes: of its pretrained weights.
        url: of its pretrained weights; empty where there are none.
    """

    image_size: int
    num_classes: int
    url: str


@functools.cache
def default_config(architecture: str) -> DefaultConfig:
    """effdet's configuration of an architecture; kept, because effdet takes 5 ms to build one."""
    config = get_efficientdet_config(architecture)
    return DefaultConfig(int(config.image_size[0]), int(config.num_classes), str(config.url or ""))


@dataclass(frozen=True)
class ModelSpec:
    """One detector of a set.

    Attributes:
        name: unique in its set; what answers, metrics and reports call it.
        architecture: effdet's name.
        num_classes: of its head; labels are 1..num_classes.
        weights_file: the user's own weights; None looks for the usual ones (`detserver.weights`).
        seed_offset: added to the seed of the random weights. Members of one architecture differ by it, and each
            built-in model has one with which `tests/test_calibrate.py` passes.
    """

    name: str
    architecture: str
    num_classes: int
    weights_file: Path | None = None
    seed_offset: int = 0

    @property
    def image_size(self) -> int:
        """Side of the square network input, pixels."""
        return default_config(self.architecture).image_size


@dataclass(frozen=True)
class ModelSet:
    """The detectors that run on every image, in the order of the answers."""

    name: str
    models: tuple[ModelSpec, ...]

    @property
    def image_sizes(self) -> frozenset[int]:
        """The distinct input sizes of its models, pixels."""
        return frozenset(model.image_size for model in self.models)


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


class _ModelEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

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

    Raises:
        BadConfiguration: not readable, not of the form above, an architecture that effdet does not know, or a name
            that stands twice.
    """
    try:
        entries = _File.model_validate(tomllib.loads(path.read_text())).model_sets
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfiguration(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadConfiguration(f"{path}: {where}: {first['msg']}") from error
    return [_model_set(path, name, entry.models, weights_dir) for name, entry in entries.items()]


def _model_set(path: Path, set_name: str, entries: list[_ModelEntry], weights_dir: Path) -> ModelSet:
    models = []
    architectures = Counter(entry.architecture for entry in entries)
    for index, entry in enumerate(entries):
        if entry.architecture not in efficientdet_model_param_dict:
            known = ", ".join(name for name in efficientdet_model_param_dict if name.startswith("tf_efficientdet_d"))
            raise BadConfiguration(f"{path}: effdet has no model {entry.architecture!r}; among others it has {known}")
        repeated = architectures[entry.architecture] > 1
        name = entry.name or (f"{entry.architecture}_{entry.num_classes}" if repeated else entry.architecture)
        weights_file = None if entry.weights is None else weights_dir / entry.weights
        models.append(ModelSpec(name, entry.architecture, entry.num_classes, weights_file, seed_offset=index))
    name, count = Counter(model.name for model in models).most_common(1)[0]
    if count > 1:
        raise BadConfiguration(f"{path}: {set_name} has {count} models called {name}; give each a `name`")
    return ModelSet(set_name, tuple(models))


class Zoo:
    """The model sets that a server knows."""

    def __init__(self, model_sets_file: Path | None, weights_dir: Path) -> None:
        own = read_model_sets(model_sets_file, weights_dir) if model_sets_file else []
        self.model_sets = {model_set.name: model_set for model_set in (*BUILT_IN, *own)}

    def model_set(self, name: str) -> ModelSet:
        """The set called `name`.

        Raises:
            UnknownModelSet: there is none; the message lists those there are.
        """
        if name not in self.model_sets:
            raise UnknownModelSet(f"no model set {name!r}; there are {', '.join(self.model_sets)}")
        return self.model_sets[name]
