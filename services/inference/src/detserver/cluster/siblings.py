"""All replicas of the deployment, asked by one of them."""

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
        """What `method` of each replica returns; of one that dies meanwhile, or fails, nothing.

        Raises:
            TimeoutError: one has not answered in `limit_s` seconds.
        """
        asked = self._replicas.broadcast(method, *arguments)
        answers = await asked.results_async(timeout_s=limit_s, return_exceptions=True)
        return [each for each in answers if not isinstance(each, BaseException)]
