"""Which implementations a command is about."""

from collections.abc import Sequence

from detbench.client import ImplementationStatus
from detbench.errors import ServerError


def select_implementations(
    offered: Sequence[ImplementationStatus], names: Sequence[str] | None, model_set: str
) -> list[ImplementationStatus]:
    """Those called `names`, in that order, or without names all that can run `model_set`.

    Raises:
        ServerError: a name that the server does not know, or that cannot run there or not with `model_set`.
    """
    can_run = {each.name: each for each in offered if each.unavailable is None and model_set in each.model_sets}
    if names is None:
        return list(can_run.values())
    known = {each.name: each for each in offered}
    for name in names:
        if name not in known:
            raise ServerError(f"the server has no implementation {name!r}; it has {', '.join(known)}")
        if name not in can_run:
            reason = known[name].unavailable or f"it cannot run {model_set}"
            raise ServerError(f"{name} cannot be used here: {reason}; leave it out of --implementations")
    return [can_run[name] for name in dict.fromkeys(names)]
