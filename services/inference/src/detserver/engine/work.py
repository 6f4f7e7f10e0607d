"""What the device thread is given to do, and what it answers."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from detserver.errors import DetserverError, InferenceFailed, OutOfMemory
from detserver.implementations.base import DetectionOutput
from detserver.models.model_sets import ModelSet
from detserver.preprocess import PreparedImage

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Names of an implementation and of a model set."""


@dataclass(frozen=True)
class Answer:
    """Detections of one image, one output per model, and when the device worked on them (`time.perf_counter`).

    `started`, `ended` and `forward_s`, the seconds of the forward pass in between, are those of the batch of
    `batch_size` images that this one was part of.
    """

    outputs: list[DetectionOutput]
    started: float
    ended: float
    forward_s: float
    batch_size: int


@dataclass(frozen=True)
class LoadFigures:
    """What loading an implementation took, without what it shares with others; see `BaseModelImpl` for `remark`.

    `compile_s` is None where nothing is compiled. `first` is whether the load put into the cache folder what later ones
    find there.
    """

    load_s: float
    compile_s: float | None
    remark: str
    first: bool


@dataclass(eq=False)
class Request:
    """One image that waits for one implementation until `deadline`, and since `queued`, by `time.perf_counter`."""

    key: Key
    image: PreparedImage
    deadline: float
    future: "Future[Answer]" = field(default_factory=Future)
    queued: float = field(default_factory=time.perf_counter)


@dataclass(eq=False)
class Call:
    """A function that is to run in the device thread."""

    function: Callable[[], Any]
    future: "Future[Any]" = field(default_factory=Future)


def fail(item: Request | Call, error: Exception) -> None:
    """Answer what waits, or is in work, with `error`; nothing where nobody waits for it any more."""
    if item.future.running() or item.future.set_running_or_notify_cancel():
        item.future.set_exception(error)


@contextmanager
def failures(key: Key) -> Iterator[None]:
    """Turn what an implementation raises into an answer; the log gets the traceback of what is not expected."""
    try:
        yield
    except DetserverError:
        raise
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        raise OutOfMemory(f"{key[0]} on {key[1]}: {reason}; unload another implementation") from error
    except Exception as error:
        log.exception("%s on %s failed", *key)
        raise InferenceFailed(f"{key[0]} on {key[1]} failed: {type(error).__name__}: {error}") from error


def check_outputs(model_set: ModelSet, images: int, outputs: Sequence[Sequence[DetectionOutput]]) -> None:
    """Raise `InferenceFailed` where `outputs` are not one per image and model, or hold a NaN or an infinity."""
    names = [spec.name for spec in model_set.models]
    if len(outputs) != images or any([output.model_name for output in per_image] != names for per_image in outputs):
        raise InferenceFailed(f"not one output per image and model of {model_set.name}")
    for output in (output for per_image in outputs for output in per_image):
        if not (np.isfinite(output.boxes).all() and np.isfinite(output.scores).all()):
            raise InferenceFailed(f"{output.model_name} answered a NaN or an infinity")
