"""Which implementations a command is about, and in how many replicas each is served."""

from collections.abc import Sequence
from dataclasses import dataclass

from detbench.api.client import ServerClient
from detbench.api.schemas import ImplementationStatus
from detbench.errors import ServerError
from detbench.results.sweep import deployment

ALL = "all"


@dataclass(frozen=True)
class Deployment:
    """An implementation, served by a cluster of so many replicas, or by one process: None. `str()` is for a person."""

    status: ImplementationStatus
    replicas: int | None = None

    def __str__(self) -> str:
        return deployment(self.status.name, self.replicas)

    @property
    def slug(self) -> str:
        """As a part of the name of a file: "fastest", "fastest-2-replicas"."""
        return str(self).replace(" with ", "-").replace(" ", "-")


def replicas_of(client: ServerClient, asked: Sequence[int]) -> tuple[int | None, ...]:
    """The numbers of replicas to measure: those asked for, else that of the server, None where it is no cluster."""
    found = client.health().replicas
    return tuple(dict.fromkeys(asked)) or (None if found is None else len(found),)


def select_implementations(
    offered: Sequence[ImplementationStatus], names: Sequence[str] | None, model_set: str
) -> list[ImplementationStatus]:
    """Those called `names`, in that order; without names, or for `["all"]`, all that can run `model_set`.

    Without names those that compile are left out: `left_out` tells. For `["all"]` they come last, so that a session
    that is cut off has measured the others.

    Raises:
        ServerError: a name that the server does not know, or that cannot run there or not with `model_set`.
    """
    can_run = {each.name: each for each in offered if each.why_not(model_set) is None}
    if names is None:
        return [each for each in can_run.values() if not each.compiles]
    if list(names) == [ALL]:
        return sorted(can_run.values(), key=lambda each: each.compiles)
    known = {each.name: each for each in offered}
    for name in names:
        if name not in known:
            raise ServerError(f"the server has no implementation {name!r}; it has {', '.join(known)}")
        if name not in can_run:
            reason = known[name].why_not(model_set)
            raise ServerError(f"{name} cannot be used here: {reason}; leave it out of --implementations")
    return [can_run[name] for name in dict.fromkeys(names)]


def left_out(offered: Sequence[ImplementationStatus], names: Sequence[str] | None, model_set: str) -> str | None:
    """A line about what `select_implementations` leaves out unless it is named; None where that is nothing."""
    compiling = [each.name for each in offered if each.compiles and each.why_not(model_set) is None]
    if names is not None or not compiling:
        return None
    names_of = ", ".join(compiling)
    return f"left out, as their first load takes minutes: {names_of} (name them in --implementations, or say {ALL})"
