"""torch.compile: whether it can run here, what it makes kept in the cache folder, and a word while it works."""

import logging
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
        return f"torch.compile needs a compiler, and neither {' nor '.join(compilers)} is installed"
    if device.type == "cuda" and find_spec("triton") is None:
        return "torch.compile needs triton, which is not installed"
    return None


def keep_in(cache_dir: Path) -> None:
    """Let torch.compile keep what it makes under `cache_dir`, unless the environment says where."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir.absolute() / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_dir.absolute() / "triton"))


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """`function` through torch.compile; a second batch size makes it compile once more, for all that follow."""
    torch._dynamo.config.recompile_limit = _MAX_GRAPHS
    return torch.compile(function)


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
