"""`compile`: each network through torch.compile (inductor); what it makes is kept in the cache folder."""

import importlib
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, ParamSpec, TypeVar

import torch

from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore
from detserver.postprocess import RawOutput
from detserver.recipes.plane_mean import with_accurate_means
from detserver.recipes.recipe import BATCH_SIZES, Recipe
from detserver.recipes.technique import Inputs, Plan, Technique

_switched_off = False
# One entry per network, batch size and implementation; above the limit, 8 by default, dynamo runs eager for good.
_MAX_GRAPHS = 256

P = ParamSpec("P")
T = TypeVar("T")


class Compile(Technique):
    """`default` is inductor's code launched by Python, `reduce-overhead` launches it by CUDA graphs of its own."""

    field = "compile"
    titles: ClassVar = {"default": "torch.compile", "reduce-overhead": "torch.compile's CUDA graphs"}
    fixed_shapes = True
    compiles = True

    def unavailable_reason(self, recipe: Recipe, device: torch.device) -> str | None:
        """See `Technique.unavailable_reason`."""
        if recipe.backend != "torch":
            return f"torch.compile cannot compile what {recipe.backend} runs"
        if recipe.compile == "reduce-overhead":
            if device.type != "cuda":
                return "torch.compile's CUDA graphs need an NVIDIA GPU"
            if recipe.graph or recipe.streams:
                return "torch.compile's CUDA graphs cannot be captured again, or run on streams of others"
        return unavailable_reason(device)

    def loads_beside(self, recipe: Recipe) -> bool:
        """See `Technique.loads_beside`; torch keeps its graphs for the thread that has made them."""
        return recipe.compile != "reduce-overhead"

    def batch_sizes(self, device: torch.device) -> tuple[int, ...]:
        """See `Technique.batch_sizes`; on a CPU one image alone, because larger batches gain nothing there."""
        return BATCH_SIZES if device.type == "cuda" else (1,)

    def prepare(self, recipe: Recipe, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> None:  # noqa: ARG002 (on all)
        """Import what torch.compile imports at its first use, which takes seconds."""
        importlib.import_module("torch._inductor.compile_fx")

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        mode = None if plan.recipe.compile == "default" else plan.recipe.compile
        for network in plan.networks:
            if plan.device.type == "cpu" and network.module is not None:
                with_accurate_means(network.module)
            network.run = compiled(network.run, mode)
        if mode is not None:
            forward = plan.forward

            def in_one_step(inputs: Inputs) -> list[RawOutput]:
                # What the last batch answered may be overwritten.
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                return forward(inputs)

            plan.forward = in_one_step


def unavailable_reason(device: torch.device) -> str | None:
    """Why torch.compile cannot run for `device`, or None where it can."""
    if _switched_off:
        return "torch.compile is switched off (DETSERVER_COMPILE=false)"
    variable, compilers = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++", "clang++"))
    if not any(shutil.which(name) for name in (os.environ.get(variable, compilers[0]), *compilers)):
        absent = " nor ".join(compilers)
        return f"torch.compile needs a compiler, and neither {absent} is installed (the image: COMPILER=g++ in .env)"
    if device.type == "cuda" and find_spec("triton") is None:
        return "torch.compile needs triton, which is not installed"
    return None


def configure(cache_dir: Path, processes: int, allowed: bool) -> None:
    """Let torch.compile keep what it makes under `cache_dir`, and work with so many processes, unless told otherwise.

    Its own number is that of the processors it is bound to, whatever the quota is. Where it is not `allowed`, no recipe
    of this process uses it.
    """
    global _switched_off
    _switched_off = not allowed
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(processes))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir.absolute() / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_dir.absolute() / "triton"))


def compiled(function: Callable[P, T], mode: str | None = None) -> Callable[P, T]:
    """`function` through torch.compile, for each shape by itself.

    Shapes are never symbols: networks of one class and several input sizes share their code, so that torch would take
    their height and width for symbols from the second network on, and then compiles for more than ten minutes.
    """
    torch._dynamo.config.recompile_limit = _MAX_GRAPHS
    return torch.compile(function, dynamic=False, mode=mode)
