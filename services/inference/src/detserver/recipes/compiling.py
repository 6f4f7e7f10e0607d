"""torch.compile: whether it can run here, what it makes kept in the cache folder, and a word while it works."""

import importlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

log = logging.getLogger(__name__)

_SAY_SO_EVERY_S = 15.0
# One entry per network, batch size and implementation; above the limit, 8 by default, dynamo runs eager for good.
_MAX_GRAPHS = 256

P = ParamSpec("P")
T = TypeVar("T")


def unavailable_reason(device: torch.device) -> str | None:
    """Why torch.compile cannot run for `device`, or None where it can."""
    variable, compilers = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++", "clang++"))
    if not any(shutil.which(name) for name in (os.environ.get(variable, compilers[0]), *compilers)):
        absent = " nor ".join(compilers)
        return f"torch.compile needs a compiler, and neither {absent} is installed (the image: COMPILER=g++ in .env)"
    if device.type == "cuda" and find_spec("triton") is None:
        return "torch.compile needs triton, which is not installed"
    return None


def configure(cache_dir: Path, processes: int) -> None:
    """Let torch.compile keep what it makes under `cache_dir`, and work with so many processes, unless told otherwise.

    Its own number is that of the processors it is bound to, whatever the quota is.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(processes))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir.absolute() / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_dir.absolute() / "triton"))


def import_compiler() -> None:
    """Import what torch.compile imports at its first use, which takes seconds."""
    importlib.import_module("torch._inductor.compile_fx")


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """`function` through torch.compile, for each shape by itself.

    Shapes are never symbols: networks of one class and several input sizes share their code, so that torch would take
    their height and width for symbols from the second network on, and then compiles for more than ten minutes.
    """
    torch._dynamo.config.recompile_limit = _MAX_GRAPHS
    return torch.compile(function, dynamic=False)


class CompiledInTime:
    """A network through torch.compile, for a bounded time: an input shape that is new after it runs eager.

    Args:
        network: called with pixels (B, 3, H, W).
        until: by `time.monotonic`.

    Attributes:
        compiled: the shapes that run compiled.
        eager: the shapes that run eager.
    """

    def __init__(self, network: Callable[[torch.Tensor], Any], until: float) -> None:
        self._network = compiled(network)
        self._until = until
        self.compiled: set[torch.Size] = set()
        self.eager: set[torch.Size] = set()

    def __call__(self, pixels: torch.Tensor) -> Any:
        """What the network returns."""
        in_time = time.monotonic() < self._until
        with torch.compiler.set_stance("default" if in_time else "eager_on_recompile"):
            found = self._network(pixels)
        if in_time:
            self.compiled.add(pixels.shape)
        elif pixels.shape not in self.compiled:
            self.eager.add(pixels.shape)
        return found


@contextmanager
def said_so(what: str) -> Iterator[None]:
    """Log every few seconds that `what` is under way, for as long as the block runs."""
    done = threading.Event()
    start = time.perf_counter()

    def say() -> None:
        while not done.wait(_SAY_SO_EVERY_S):
            log.info("%s: %.0f s so far; minutes the first time on a machine", what, time.perf_counter() - start)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
