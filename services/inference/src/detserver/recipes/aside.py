"""Preparing recipes in a process of its own, which other threads of the server do not notice.

While torch exports a network, every call of a module in the same process becomes a part of that network, whichever
thread it comes from (`torch.fx.Tracer.trace` replaces `torch.nn.Module.__call__`). Where there is too little memory for
a conversion, the server lives on.
"""

import logging
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch

from detserver.errors import DetserverError, InferenceFailed
from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore
from detserver.recipes.recipe import Recipe


def prepare_aside(
    recipes: Sequence[Recipe], model_set: ModelSet, weights: WeightsStore, device: torch.device
) -> dict[Recipe, DetserverError]:
    """Prepare `recipes`, one after the other, see `detserver.recipes.build.prepare`; returns why some could not be."""
    level, threads = logging.getLogger().getEffectiveLevel(), torch.get_num_threads()
    command = (sys.executable, "-m", "detserver.recipes.preparing", str(level), str(threads))
    answer = b""
    with (
        suppress(BrokenPipeError),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        pickle.dump((list(recipes), model_set, weights, device), process.stdin)
        process.stdin.flush()
        # Its input stays open: where it ends, the server has ended.
        answer = process.stdout.read()
    if not answer:
        ended = InferenceFailed(f"the process that converts and compiles networks ended, with {process.returncode}")
        return dict.fromkeys(recipes, ended)
    failures: dict[Recipe, DetserverError] = pickle.loads(answer)
    return failures
