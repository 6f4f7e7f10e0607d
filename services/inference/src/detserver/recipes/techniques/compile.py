"""`compile`: each network through torch.compile (inductor); what it makes is kept in the cache folder.

The code of `default` is made ahead of time, in a process of its own (`detserver.recipes.aside`), and loaded by the
server. While torch traces a network, `torch.nn.Module.__call__` is another one for every thread of its process, so that
what is served meanwhile fails; and it works in Python for minutes.
"""

import hashlib
import importlib
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
from torch import nn

from detserver.models.model_sets import ModelSet, ModelSpec
from detserver.models.weights import WeightsStore
from detserver.postprocess import RawOutput
from detserver.recipes.backends.conversion import make_once
from detserver.recipes.plane_mean import with_accurate_means
from detserver.recipes.recipe import BATCH_SIZES, Recipe
from detserver.recipes.stacks import groups
from detserver.recipes.technique import Inputs, Plan, Technique

_switched_off = False
# One entry per network, batch size and implementation; above the limit, 8 by default, dynamo runs eager for good.
_MAX_GRAPHS = 256

_FILE = "network.bin"
# Of how a network is compiled; another number, and every one is compiled anew.
_COMPILATION = 1

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

    def is_prepared(self, recipe: Recipe, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> bool:
        """See `Technique.is_prepared`."""
        if recipe.compile != "default":
            return True
        networks = [[spec] for spec in model_set.models] if recipe.stack == "none" else groups(model_set.models)
        return all(
            _folder(recipe, specs, weights, device, size).is_dir()
            for specs in networks
            for size in self.batch_sizes(device)
        )

    def prepare(self, recipe: Recipe, model_set: ModelSet, weights: WeightsStore, device: torch.device) -> None:  # noqa: ARG002 (on all)
        """Import what torch.compile imports at its first use, which takes seconds."""
        importlib.import_module("torch._inductor.compile_fx")

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        torch._dynamo.config.recompile_limit = _MAX_GRAPHS
        if plan.recipe.compile == "default":
            for network in plan.networks:
                assert network.module is not None
                if plan.device.type == "cpu":
                    with_accurate_means(network.module)
                # As `nn.Module.compile` does.
                network.module._compiled_call_impl = _AheadOfTime(network.module, plan, network.specs)
            return
        for network in plan.networks:
            network.run = compiled(network.run, mode=plan.recipe.compile)
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


def compiled(function: Callable[P, T], **how: Any) -> Callable[P, T]:
    """`function` through torch.compile, for each shape by itself.

    Shapes are never symbols: networks of one class and several input sizes share their code, so that torch would take
    their height and width for symbols from the second network on, and then compiles for more than ten minutes.
    """
    return torch.compile(function, dynamic=False, **how)


class _AheadOfTime:
    """The compiled code of a network, for each batch size: loaded from the cache folder, and made where it is absent.

    Args:
        module: whose weights it takes.
        specs: the members of the network.
    """

    def __init__(self, module: nn.Module, plan: Plan, specs: Sequence[ModelSpec]) -> None:
        self._module = module
        self._folder = partial(_folder, plan.recipe, specs, plan.weights, plan.device)
        self._names = ", ".join(spec.name for spec in specs)
        self._by_size: dict[int, Callable[..., Any]] = {}

    def __call__(self, pixels: torch.Tensor) -> Any:
        size = len(pixels)
        if size not in self._by_size:
            self._by_size[size] = self._loaded(pixels)
        return self._by_size[size](self._module, pixels)

    def _loaded(self, pixels: torch.Tensor) -> Callable[..., Any]:
        folder = self._folder(len(pixels))
        make_once(folder, f"compiling {self._names} for batches of {len(pixels)}", lambda to: self._compile(to, pixels))
        load: Any = torch.compiler.load_compiled_function
        with (folder / _FILE).open("rb") as file:
            code: Callable[..., Any] = load(file)
        return code

    def _compile(self, folder: Path, pixels: torch.Tensor) -> None:
        # Its inputs have one shape, layout and dtype, which its code checks; what torch would check besides is whether
        # they were made in inference mode, and that makes no difference.
        unchecked = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        function: Any = compiled(self._module.forward, fullgraph=True, options=unchecked)
        function.aot_compile(((pixels,), {})).save_compiled_function(str(folder / _FILE))


def _folder(
    recipe: Recipe, specs: Sequence[ModelSpec], weights: WeightsStore, device: torch.device, batch_size: int
) -> Path:
    """Where the code of a network is kept, named by all that it is made from and for."""
    if device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(device)} {torch.version.cuda}"
    else:
        machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    members = [(spec.identity, weights.get(spec).fingerprint) for spec in specs]
    made_from = f"{members} {recipe} {machine} {version('torch')} {_COMPILATION}"
    name = "-".join(spec.name for spec in specs)
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    return weights.cache_dir / "compiled" / f"{name}_batch{batch_size}_{digest}"
