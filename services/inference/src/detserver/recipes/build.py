"""The builder: out of a recipe something that runs, or the reason why it cannot."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from detserver.machine.stopwatch import Stopwatch
from detserver.models.model_sets import ModelSet, ModelSpec
from detserver.models.scenes import photograph
from detserver.models.weights import WeightsStore
from detserver.postprocess import DetectionOutput, RawOutput
from detserver.preprocess import PreparedImage, prepare_for
from detserver.recipes.recipe import BATCH_SIZES, Recipe
from detserver.recipes.technique import Network, Plan, Run
from detserver.recipes.techniques import of_recipe


def why_not(recipe: Recipe, device: torch.device | None = None, model_set: ModelSet | None = None) -> str | None:
    """Why `recipe` cannot run on `device`, or not with `model_set`; None where it can. What is None is not asked."""
    try:
        techniques = list(of_recipe(recipe))
    except LookupError as error:
        return str(error)
    for technique in techniques:
        if device is not None and (reason := technique.unavailable_reason(recipe, device)):
            return reason
        if model_set is not None and (reason := technique.unsupported_reason(recipe, model_set)):
            return reason
    return None


def compiles(recipe: Recipe) -> bool:
    """Whether a first load takes minutes."""
    return any(technique.compiles for technique in of_recipe(recipe))


def batch_sizes(recipe: Recipe, device: torch.device) -> tuple[int, ...]:
    """The sizes of batches that `recipe` can run on `device`, ascending, from 1."""
    of_each = [technique.batch_sizes(device) for technique in of_recipe(recipe)]
    return tuple(size for size in BATCH_SIZES if all(size in sizes for sizes in of_each))


def is_prepared(recipe: Recipe, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> bool:
    """Whether the cache folder has all that `prepare` would put there."""
    return all(technique.is_prepared(recipe, model_set, weights, device) for technique in of_recipe(recipe))


def prepare(recipe: Recipe, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> None:
    """Make what later loads find in the cache folder, by running each batch size where that makes it."""
    for technique in of_recipe(recipe):
        technique.prepare(recipe, model_set, weights, device)
    if not is_prepared(recipe, model_set, weights, device):
        built = Built(recipe, model_set, weights, device, Stopwatch(device), lambda: None)
        example = prepare_for(device, photograph(), model_set.inputs, built.memory_format)
        built.warm_up(lambda: example, built.batch_sizes)


class Built:
    """A set of networks that run by a recipe.

    Args:
        recipe: one that can run there, see `why_not`.
        model_set: whose networks run.
        weights: where the weights are.
        device: where they run.
        stopwatch: counts the stages of each batch.
        note_slow_nms: called once for each batch whose NMS had to look at all candidates.

    Attributes:
        recipe: as given.
        batch_sizes: the sizes of batches that it runs, ascending, from 1.
        compile_s: seconds that the first runs took, where torch.compile works in them; else None.
    """

    @torch.inference_mode()
    def __init__(
        self,
        recipe: Recipe,
        model_set: ModelSet,
        weights: WeightsStore,
        device: torch.device,
        stopwatch: Stopwatch,
        note_slow_nms: Callable[[], None],
    ) -> None:
        self.recipe = recipe
        self.batch_sizes = batch_sizes(recipe, device)
        self.compile_s: float | None = None
        self._plan = Plan(recipe, model_set, weights, device, stopwatch, note_slow_nms)
        self._plan.networks = [_network(self._plan, spec) for spec in model_set.models]
        techniques = [each for each in of_recipe(recipe) if recipe.backend == "torch" or not each.in_torch]
        for technique in techniques:
            technique.apply(self._plan)
        self._fixed_shapes = any(technique.fixed_shapes for technique in techniques)

    @property
    def memory_format(self) -> torch.memory_format:
        """How the pixels of its inputs lie in memory."""
        return self._plan.memory_format

    @property
    def remarks(self) -> list[str]:
        """What really runs, as far as the recipe leaves it open."""
        return self._plan.remarks

    def warm_up(self, example: Callable[[], PreparedImage], batch_sizes: Sequence[int]) -> None:
        """Run each batch size where something is made for each; on a GPU the smallest anyway, which chooses kernels.

        What runs eager on a CPU has nothing to make: its first image takes 0.4 s longer than the next ones.
        """
        start = time.perf_counter()
        on_gpu = self._plan.device.type == "cuda"
        for size in batch_sizes if self._fixed_shapes else batch_sizes[: int(on_gpu)]:
            self.detect([example()] * size)
        if self.recipe.compile != "none":
            self.compile_s = (self.compile_s or 0.0) + time.perf_counter() - start

    @torch.inference_mode()
    def detect(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
        """For each image what every model of the set finds, in its order.

        Args:
            images: as many as one of `batch_sizes`.
        """
        with self._plan.math():
            return self._plan.detect(images)

    def release(self) -> None:
        """Let go of what has to go in an order of its own, before the object itself goes."""
        for release in self._plan.release:
            release()


def _network(plan: Plan, spec: ModelSpec) -> Network:
    if plan.recipe.backend != "torch":
        return Network([spec], None, _not_built)
    module = plan.weights.model(spec).to(plan.device)
    return Network([spec], module, _alone(module))


def _alone(module: nn.Module) -> Run:
    return lambda pixels: [module(pixels)]


def _not_built(_: torch.Tensor) -> Sequence[RawOutput]:
    raise NotImplementedError("the recipe's backend has to run the network")
