"""Preparing recipes in a process of its own, which other threads of the server do not notice.

While torch exports a network, every call of a module in the same process becomes a part of that network, whichever
thread it comes from (`torch.fx.Tracer.trace` replaces `torch.nn.Module.__call__`). It also costs a gigabyte of memory,
which a process that ends gives back.
"""

import logging
import pickle
import subprocess
import sys
from collections.abc import Sequence

import torch

from detserver.errors import DetserverError, InferenceFailed
from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore
from detserver.recipes.recipe import Recipe


def prepare_aside(
    recipes: Sequence[Recipe], model_set: ModelSet, weights: WeightsStore, device: torch.device
) -> dict[Recipe, DetserverError]:
    """Prepare `recipes`, one after the other, see `detserver.recipes.build.prepare`; returns why some could not be.

    Raises:
        InferenceFailed: the process ended before it was done.
    """
    level = logging.getLogger().getEffectiveLevel()
    command = (sys.executable, "-m", "detserver.recipes.preparing", str(level))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((list(recipes), model_set, weights, device), process.stdin)
            process.stdin.flush()
            # Its input stays open: where it ends, the server has ended.
            answer = process.stdout.read()
        except BrokenPipeError:
            answer = b""
    if not answer:
        raise InferenceFailed(f"networks were not converted: the process for it ended with {process.returncode}")
    failures: dict[Recipe, DetserverError] = pickle.loads(answer)
    return failures
