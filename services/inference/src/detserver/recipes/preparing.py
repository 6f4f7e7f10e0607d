"""The process that prepares recipes: `python -m detserver.recipes.preparing LOG_LEVEL THREADS`, see `aside`."""

import logging
import os
import pickle
import sys
import threading

from detserver import lean_imports
from detserver.errors import DetserverError, InferenceFailed
from detserver.startup import LOG_FORMAT

_GIVE_WAY = 10  # to what is served, of 19


def main(level: str, threads: str) -> None:
    """Prepare what standard input asks for, and write the failures to standard output, both pickled."""
    os.nice(_GIVE_WAY)
    logging.basicConfig(level=int(level), format=LOG_FORMAT, stream=sys.stderr)
    lean_imports.install()
    import torch

    from detserver.machine.device import use_ieee_float32
    from detserver.recipes import build

    # As in the server: compiled code is refused where they are others.
    torch.set_num_threads(int(threads))
    use_ieee_float32()
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print
    recipes, model_set, weights, device = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    failures: dict[object, DetserverError] = {}
    for recipe in recipes:
        try:
            build.prepare(recipe, model_set, weights, device)
        except DetserverError as error:
            failures[recipe] = error
        except Exception as error:  # of libraries that cannot convert a network
            logging.getLogger(__name__).exception("%s cannot be prepared", recipe)
            failures[recipe] = InferenceFailed(f"{recipe} cannot be prepared: {type(error).__name__}: {error}")
    with answer:
        pickle.dump(failures, answer)


def _end_with_the_server() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
