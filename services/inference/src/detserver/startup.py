"""What a process does before it imports and makes a server."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from detserver.settings import Settings

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def starting(settings: Settings) -> Iterator[None]:
    """Import the application and make it in the block: torch and effdet take seconds.

    Python's garbage collector does not look at what the block makes, neither in it nor later: nearly all that is
    imported stays, and looking for garbage in it took 0.6 CPU seconds of 7.3.
    """
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    # Both log a line per request, which a hostile client could fill a disk with.
    for chatty in ("httpx", "python_multipart"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    # Before numba is imported; beside its sources it may not be allowed to write.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(settings.cache_dir.absolute() / "numba"))
    gc.disable()
    try:
        from detserver import lean_imports

        lean_imports.install()
        yield
    finally:
        gc.freeze()
        gc.enable()
