"""torch.compile: whether it can run here, what it makes kept in the cache folder, and a word while it works."""

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import ParamSpec, TypeVar

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


def keep_in(cache_dir: Path) -> None:
    """Let torch.compile keep what it makes under `cache_dir`, unless the environment says where."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir.absolute() / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_dir.absolute() / "triton"))


def compiled(function: Callable[P, T], until: float = math.inf) -> Callable[P, T]:
    """`function` through torch.compile, for each shape by itself.

    Shapes are never symbols: networks of one class and several input sizes share their code, so that torch would take
    their height and width for symbols from the second network on, and then compiles for more than ten minutes.

    Nothing more is compiled from the time `until` on, by `time.monotonic`: what would have to be runs eager.
    """
    torch._dynamo.config.recompile_limit = _MAX_GRAPHS
    optimized = torch.compile(function, dynamic=False)

    def bounded(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.compiler.set_stance("default" if time.monotonic() < until else "eager_on_recompile"):
            return optimized(*args, **kwargs)

    return optimized if math.isinf(until) else bounded


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
