"""`fold`: batch norms folded into the convolutions before them, see `detserver.recipes.folding`."""

from typing import ClassVar

from detserver.recipes.folding import fold_batch_norm
from detserver.recipes.technique import Plan, Technique


class Fold(Technique):
    """Networks without batch norms."""

    field = "fold"
    titles: ClassVar = {True: "batch norm folded"}
    in_torch = True

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`."""
        for network in plan.networks:
            fold_batch_norm(network.module)
