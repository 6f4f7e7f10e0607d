"""Implementations that are recipes: each is a row of the table."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import torch

from detserver.implementations.base import BaseModelImpl, DetectionOutput
from detserver.models.model_sets import ModelSet
from detserver.preprocess import PreparedImage
from detserver.recipes import build
from detserver.recipes.aside import prepare_aside
from detserver.recipes.build import Built, why_not
from detserver.recipes.recipe import BATCH_SIZES, Recipe, Search, largest_fitting
from detserver.recipes.search import Found, Memory, candidates, compiled, search
from detserver.recipes.techniques import of_recipe, title

log = logging.getLogger(__name__)

_SAY_SO_EVERY_S = 15.0


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: of the implementation.
        recipe: what it runs by.
        description: one line.
        adds_to: the row that it adds one technique to; None for the first, and for a search, which is compared with the
            fastest exact row before it.
    """

    name: str
    recipe: Recipe | Search
    description: str
    adds_to: str | None = None


class RecipeImpl(BaseModelImpl):
    """Runs by the recipe of its row; see `of_row`."""

    row: ClassVar[Row]
    max_batch_size = max(BATCH_SIZES)
    _compiled_aside_s = 0.0

    @classmethod
    def unavailable_reason(cls, device: torch.device) -> str | None:
        """See `BaseModelImpl.unavailable_reason`."""
        recipe = cls.row.recipe
        if isinstance(recipe, Recipe):
            return why_not(recipe, device)
        if candidates(recipe, device):
            return None
        return why_not(Recipe(fold=True, postprocess="batched", precision=recipe.precision), device)

    @classmethod
    def unsupported_reason(cls, model_set: ModelSet) -> str | None:
        """See `BaseModelImpl.unsupported_reason`."""
        return why_not(cls.row.recipe, model_set=model_set) if isinstance(cls.row.recipe, Recipe) else None

    @classmethod
    def compiles(cls, device: torch.device) -> bool:
        """See `BaseModelImpl.compiles`."""
        recipe = cls.row.recipe
        if isinstance(recipe, Recipe):
            return build.compiles(recipe)
        return any(compiled(each, device) is not None for each in candidates(recipe, device))

    @classmethod
    def loads_beside(cls, device: torch.device) -> bool:
        """See `BaseModelImpl.loads_beside`."""
        recipe = cls.row.recipe
        if isinstance(recipe, Search):
            return device.type == "cpu"
        return all(technique.loads_beside(recipe) for technique in of_recipe(recipe))

    @classmethod
    def loads_gently(cls) -> bool:
        """See `BaseModelImpl.loads_gently`; other backends keep threads, which are as the one that has started them."""
        return isinstance(cls.row.recipe, Recipe) and cls.row.recipe.backend == "torch"

    def prepare(self) -> None:
        """See `BaseModelImpl.prepare`."""
        super().prepare()
        recipes = self._to_prepare()
        missing = [
            recipe for recipe in recipes if not build.is_prepared(recipe, self.model_set, self.weights, self.device)
        ]
        start = time.perf_counter()
        failures = prepare_aside(missing, self.model_set, self.weights, self.device) if missing else {}
        self._compiled_aside_s = time.perf_counter() - start if any(each.compile != "none" for each in missing) else 0.0
        for recipe, failure in failures.items():
            if isinstance(self.row.recipe, Recipe):
                raise failure
            log.warning("%s for %s, %s: left out: %s", self.name, self.model_set.name, recipe, failure)
        for recipe in recipes:
            if recipe not in failures:
                self._prepare(recipe)

    def load(self) -> None:
        """Build what runs each batch size, and run it once."""
        with _said_so(f"{self.name} for {self.model_set.name}: loading"):
            example = cache(self.example)  # what runs eager on a CPU needs none, and what makes it takes time to import
            by_size, why = self._chosen(example)
            builds: dict[Recipe, Built] = {}
            try:
                for recipe in dict.fromkeys(by_size.values()):
                    builds[recipe] = self._build(recipe)
                    builds[recipe].warm_up(example, [size for size, each in by_size.items() if each == recipe])
            except BaseException:
                for built in builds.values():
                    built.release()
                raise
        self._by_size = {size: builds[recipe] for size, recipe in by_size.items()}
        in_load_s = sum(built.compile_s for built in builds.values() if built.compile_s is not None)
        self.compile_s = in_load_s + self._compiled_aside_s or None
        self.remark = "; ".join([*why, *self._remarks(builds)])
        self.memory_format = builds[by_size[1]].memory_format
        self.stopwatch.take()
        self.slow_nms = 0

    def unload(self) -> None:
        """See `BaseModelImpl.unload`."""
        for built in set(self._by_size.values()):
            built.release()
        self._by_size = {}

    def fitting(self, waiting: int) -> int:
        """See `BaseModelImpl.fitting`."""
        return largest_fitting(waiting, tuple(self._by_size))

    def predict(self, image: PreparedImage) -> list[DetectionOutput]:
        """See `BaseModelImpl.predict`."""
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
        """See `BaseModelImpl.predict_batch`; takes any number of images, in pieces of the sizes there are."""
        found: list[list[DetectionOutput]] = []
        while len(found) < len(images):
            size = self.fitting(len(images) - len(found))
            found += self._by_size[size].detect(images[len(found) : len(found) + size])
        return found

    def _to_prepare(self) -> list[Recipe]:
        if isinstance(self.row.recipe, Recipe):
            return [self.row.recipe]
        recipes = self._candidates()
        found = self._memory(recipes).read()
        if found is None:
            return recipes
        # The search has compiled for the batch sizes that it chose, and only these are loaded.
        return list(dict.fromkeys(replace(recipe, compile="none") for recipe in found.fastest.values()))

    def _prepare(self, recipe: Recipe) -> None:
        try:
            build.prepare(recipe, self.model_set, self.weights, self.device)
        except Exception as error:  # of libraries that do not work here
            if isinstance(self.row.recipe, Recipe):
                raise
            log.warning("%s for %s, %s: not prepared: %s", self.name, self.model_set.name, recipe, error)

    def _candidates(self) -> list[Recipe]:
        assert isinstance(self.row.recipe, Search)
        return candidates(self.row.recipe, self.device, self.model_set)

    def _memory(self, recipes: list[Recipe]) -> Memory:
        return Memory(self.weights.cache_dir, self.model_set, self.device, recipes)

    def _chosen(self, example: Callable[[], PreparedImage]) -> tuple[dict[int, Recipe], list[str]]:
        """The recipe of each batch size, and what to say about the choice."""
        recipe = self.row.recipe
        if isinstance(recipe, Recipe):
            return dict.fromkeys(build.batch_sizes(recipe, self.device), recipe), []
        recipes = self._candidates()
        memory = self._memory(recipes)
        found = memory.read()
        if found is None:
            found = search(recipes, self.device, self._build, example(), self.alone)
            memory.write(found)
        return found.fastest, _said(found)

    def _build(self, recipe: Recipe) -> Built:
        return Built(recipe, self.model_set, self.weights, self.device, self.stopwatch, self._note_slow_nms)

    def _note_slow_nms(self) -> None:
        self.slow_nms += 1

    def _remarks(self, builds: dict[Recipe, Built]) -> list[str]:
        sizes = "one image at a time" if len(self._by_size) == 1 else f"batches of {', '.join(map(str, self._by_size))}"
        return [*dict.fromkeys(remark for built in builds.values() for remark in built.remarks), sizes]


def of_row(row: Row, parent: Row | None) -> type[RecipeImpl]:
    """The implementation of a row, whose technique is the one in which its recipe differs from its parent's.

    Raises:
        LookupError: no file has one of its techniques.
        ValueError: it differs in more than one field, or in none.
    """
    if isinstance(row.recipe, Recipe):
        list(of_recipe(row.recipe))
    attributes = {
        "row": row,
        "name": row.name,
        "description": row.description,
        "exact": row.recipe.precision == "fp32",
        "precision": row.recipe.precision,
        "recipe": dict(vars(row.recipe)) if isinstance(row.recipe, Recipe) else None,
        "technique": _technique(row, parent),
        "adds_to": row.adds_to,
    }
    return type(row.name, (RecipeImpl,), attributes)


def _technique(row: Row, parent: Row | None) -> str:
    if parent is None:
        if isinstance(row.recipe, Search):
            return "the fastest, by search"
        return str(row.recipe) if row.recipe.changes else title("postprocess", "effdet")
    ours, theirs = vars(row.recipe), vars(parent.recipe)
    changed = [(name, value) for name, value in ours.items() if value != theirs.get(name)]
    if len(changed) != 1:
        names = ", ".join(name for name, _ in changed) or "nothing"
        raise ValueError(f"{row.name} differs from {parent.name}, which it adds to, in {names}, not in one field")
    return title(*changed[0])


def _said(found: Found) -> list[str]:
    """What runs each batch size, and what it was chosen from."""
    by_recipe: dict[Recipe, list[str]] = {}
    for size, recipe in found.fastest.items():
        by_recipe.setdefault(recipe, []).append(str(size))
    single = len(found.fastest) == 1
    runs = [
        str(recipe) if single else f"batches of {', '.join(sizes)} by {recipe}" for recipe, sizes in by_recipe.items()
    ]
    listed = ", ".join(f"{recipe} {ms:.3g} ms" for recipe, ms in sorted(found.times_ms[1].items(), key=lambda x: x[1]))
    return [f"{'; '.join(runs)} (one image on this machine: {listed})", *([found.skipped] if found.skipped else [])]


@contextmanager
def _said_so(what: str) -> Iterator[None]:
    """Log every few seconds that `what` is under way, for as long as the block runs."""
    done = threading.Event()
    start = time.perf_counter()

    def say() -> None:
        while not done.wait(_SAY_SO_EVERY_S):
            log.info("%s: %.0f s so far", what, time.perf_counter() - start)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
