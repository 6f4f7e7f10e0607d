"""Kernels that a request launches, counted by torch's profiler in a process that ends after it.

The profiler stays attached to a process that has used it once, on a GPU, and makes every later launch slower.
"""

import asyncio
import contextlib
import json
import logging
import sys

from detserver.errors import KernelsNotCounted
from detserver.settings import Settings

log = logging.getLogger(__name__)

# A load with five minutes of torch.compile, and what is around it.
_LIMIT_S = 600.0


class Counter:
    """Counts once per implementation and model set, one at a time.

    Args:
        settings: of the server; the process that counts has the same.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counted: dict[tuple[str, str], int] = {}
        self._one_at_a_time = asyncio.Lock()

    async def count(self, implementation: str, model_set: str) -> int:
        """Kernels of a request of one image. Other requests are served meanwhile, and are slower.

        Raises:
            KernelsNotCounted: the reason is that of the process.
        """
        key = implementation, model_set
        async with self._one_at_a_time:
            if key not in self._counted:
                log.info("counting the kernels of %s for %s, in a process of its own", *key)
                self._counted[key] = await self._counted_by_a_process(*key)
            return self._counted[key]

    async def _counted_by_a_process(self, implementation: str, model_set: str) -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "detserver.http.counting", implementation, model_set),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        what = f"the kernels of {implementation} on {model_set} were not counted"
        try:
            found, problems = await asyncio.wait_for(
                process.communicate(self._settings.model_dump_json().encode()), _LIMIT_S
            )
        except TimeoutError as error:
            raise KernelsNotCounted(f"{what}: it took more than {_LIMIT_S:.0f} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.returncode == 0:
            return int(json.loads(found)["kernels_per_request"])
        last = problems.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise KernelsNotCounted(f"{what}: {last[0].removeprefix('error: ')}")
