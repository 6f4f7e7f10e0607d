"""The search for the fastest recipe: by timing, where it is to run, for each batch size; remembered for later loads."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import get_args

import torch

from detserver.machine.description import describe
from detserver.machine.timing import seconds_of
from detserver.models.model_sets import ModelSet
from detserver.preprocess import PreparedImage
from detserver.recipes.build import Built, why_not
from detserver.recipes.recipe import BATCH_SIZES, Layout, Recipe, Search

log = logging.getLogger(__name__)

Build = Callable[[Recipe], Built]

COMPILE_FOR_S = 300.0
"""Seconds after which a search begins no more compilations; what one of them takes comes on top."""

_TIMINGS, _TIME_FOR_S = 7, 2.0

# A recipe that takes this many times as long as the fastest is not tried with larger batches.
_HOPELESS = 2.0

# A batch is worth its own size only where it takes less than this share of what its halves take.
_WORTH = 0.97

Alone = Callable[[], AbstractContextManager[None]]
"""A context in which nothing else uses the device."""

Timing = Callable[[Recipe, int], float]
"""Milliseconds of a batch of some size, by recipe."""

Times = dict[int, dict[Recipe, float]]
"""Milliseconds of a batch, by its size and by recipe."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        times_ms: of everything that was timed; a batch size that is not in it gains nothing over its halves.
        skipped: why what could have been compiled was not; empty where nothing was left out.
    """

    times_ms: Times
    skipped: str = ""

    @property
    def fastest(self) -> dict[int, Recipe]:
        """By batch size, ascending."""
        return {size: min(times, key=times.__getitem__) for size, times in self.times_ms.items()}


def candidates(search: Search, device: torch.device, model_set: ModelSet | None = None) -> list[Recipe]:
    """What there is to choose from, before compilation. On a GPU everything runs in one graph.

    In float32 a GPU is not asked about channels_last: without tensor cores nothing there gains by it (an H200 took 0.98
    to 1.13 of the time), and cuDNN compiles its kernels for that layout anew in each process, for every shape.
    """
    gpu = device.type == "cuda"
    start = Recipe(fold=True, postprocess="batched", precision=search.precision)
    layouts: tuple[Layout, ...] = ("contiguous",) if gpu and search.precision == "fp32" else get_args(Layout)
    in_torch = [
        replace(start, layout=layout, stack=stack, streams=gpu and stack == "none", graph=gpu)
        for stack in ("none", "grouped", "grouped-products")
        for layout in layouts
    ]
    by_others = [replace(start, layout="channels_last", backend=backend) for backend in ("openvino", "onnxruntime")]
    return [recipe for recipe in (*in_torch, *by_others) if why_not(recipe, device, model_set) is None]


def compiled(recipe: Recipe, device: torch.device) -> Recipe | None:
    """`recipe` with its networks compiled; None where that cannot be, or gains nothing: on a CPU others are faster."""
    with_compile = replace(recipe, compile="default")
    return with_compile if device.type == "cuda" and why_not(with_compile, device) is None else None


def search(
    recipes: Iterable[Recipe], device: torch.device, build: Build, example: PreparedImage, alone: Alone = nullcontext
) -> Found:
    """Time `recipes` for each batch size, and then the fastest ones through torch.compile.

    Args:
        recipes: that can run.
        build: makes one of them.
        example: stands for every image of a batch.
        alone: a context in which nothing else uses the device.

    Raises:
        Exception: what the last of the recipes raised, where none of them runs.
    """
    builds: dict[Recipe, Built] = {}

    def built(recipe: Recipe) -> Built:
        if recipe not in builds:
            builds[recipe] = build(recipe)
        return builds[recipe]

    def time_ms(recipe: Recipe, size: int) -> float:
        return _time_ms(built(recipe), size, example, alone)

    try:
        times_ms = _uncompiled(list(recipes), builds, built, time_ms)
        skipped = _add_compiled(times_ms, device, time_ms)
    finally:
        for each in builds.values():
            each.release()
    return Found(times_ms, skipped)


def _uncompiled(contenders: list[Recipe], builds: dict[Recipe, Built], built: Build, time_ms: Timing) -> Times:
    times_ms: Times = {}
    for size in BATCH_SIZES:
        times: dict[Recipe, float] = {}
        failure: Exception | None = None
        for recipe in contenders:
            try:
                if size in built(recipe).batch_sizes:
                    times[recipe] = time_ms(recipe, size)
            except Exception as error:  # of libraries and of GPUs that are too small; there are others to run
                failure = error
                log.warning("batches of %d, %s: left out, because it failed: %s", size, recipe, error)
        if not times:
            if size == 1:
                raise failure or LookupError("there is no recipe to choose from")
            break
        best = min(times.values())
        if size > 1 and best > _WORTH * 2 * min(times_ms[size // 2].values()):
            break
        times_ms[size] = times
        contenders = [recipe for recipe, each in times.items() if each < _HOPELESS * best]
        for recipe in builds.keys() - set(contenders):
            builds.pop(recipe).release()
    return times_ms


def _add_compiled(times_ms: Times, device: torch.device, time_ms: Timing) -> str:
    """Time the fastest recipe of each batch size through torch.compile; returns why some were not."""
    until = time.monotonic() + COMPILE_FOR_S
    for size, times in times_ms.items():
        recipe = compiled(min(times, key=times.__getitem__), device)
        if recipe is None:
            continue
        if time.monotonic() > until:
            return f"batches of {size} and more not compiled: {COMPILE_FOR_S:.0f} s were over"
        try:
            times[recipe] = time_ms(recipe, size)
        except Exception as error:  # a compiler fails in many ways, and there are other recipes to run
            log.warning("batches of %d, %s: left out, because it failed: %s", size, recipe, error)
            return f"not compiled: torch.compile failed ({type(error).__name__})"
    return ""


def _time_ms(built: Built, size: int, example: PreparedImage, alone: Alone) -> float:
    images = [example] * size
    built.warm_up(lambda: example, [size])
    with alone():
        milliseconds = 1e3 * median(seconds_of(lambda: built.detect(images), _TIMINGS, _TIME_FOR_S))
    log.info("batches of %d, %s: %.3g ms", size, built.recipe, milliseconds)
    return milliseconds


class Memory:
    """Keeps what a search found in a file, for as long as nothing that it depends on changes.

    Args:
        cache_dir: the server's.
        model_set: whose networks were timed.
        device: where.
        recipes: what there was to choose from.
    """

    def __init__(self, cache_dir: Path, model_set: ModelSet, device: torch.device, recipes: Sequence[Recipe]) -> None:
        libraries = [f"{name} {version(name)}" for name in ("torch", "openvino", "onnxruntime") if find_spec(name)]
        machine = [describe(device).device_name, str(torch.get_num_threads()), *libraries]
        choice = [f"{recipe}; {compiled(recipe, device)}" for recipe in recipes]
        models = [spec.identity for spec in model_set.models]
        digest = hashlib.sha256("\n".join([*models, *machine, *choice]).encode()).hexdigest()
        self._file = cache_dir / "choices" / f"{digest[:16]}.json"
        every = [each for recipe in recipes for each in (recipe, compiled(recipe, device)) if each is not None]
        self._by_name = {str(recipe): recipe for recipe in every}

    def read(self) -> Found | None:
        """What was kept; None where nothing was, or the file is damaged."""
        try:
            kept: Mapping[str, Mapping[str, float]] = json.loads(self._file.read_text())
            times_ms = {
                int(size): {self._by_name[name]: float(ms) for name, ms in times.items()}
                for size, times in kept.items()
            }
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            return None
        complete = 1 in times_ms and all(size in BATCH_SIZES and times for size, times in times_ms.items())
        return Found(times_ms) if complete else None

    def write(self, found: Found) -> None:
        """Keep what was found, unless something was skipped: then the next load searches again, with a fuller cache."""
        if found.skipped:
            return
        kept = {size: {str(recipe): ms for recipe, ms in times.items()} for size, times in found.times_ms.items()}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_suffix(f".{os.getpid()}.partial")
            temporary.write_text(json.dumps(kept, indent=1))
            temporary.replace(self._file)
        except OSError as error:
            log.warning("the choice was not kept, so the next load measures again: %s", error)
