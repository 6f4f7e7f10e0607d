"""All replicas of the deployment, asked by one of them."""

import asyncio
from typing import Any

from ray import serve

# A replica that is about to end, or to be found dead, keeps nobody waiting for longer.
_LIMIT_S = 5.0


class Siblings:
    """Asks every replica of this process's deployment, itself among them."""

    def __init__(self) -> None:
        context = serve.get_replica_context()
        self._replicas = serve.get_deployment_handle(context.deployment, context.app_name)

    async def ask(self, method: str, *arguments: Any, limit_s: float = _LIMIT_S) -> list[Any]:
        """What `method` of each replica returns; of one that dies meanwhile, fails, or takes longer, nothing."""
        # Not by `results_async`, which has no result at all where one replica hangs.
        asked = await self._replicas.broadcast(method, *arguments)._fetch_replica_results_async()
        done, late = await asyncio.wait([asyncio.ensure_future(each.get_async()) for each in asked], timeout=limit_s)
        for each in late:
            each.cancel()
        return [each.result() for each in done if not each.cancelled() and each.exception() is None]
