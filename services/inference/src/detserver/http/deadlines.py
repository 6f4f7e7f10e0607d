"""What the headers of a request for detections say, before anything else is read, and when it has to be answered."""

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Header
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.datastructures import QueryParams
from starlette.types import Scope

from detserver.http.oip.models import key_of

_SHORTEST_MS, _LONGEST_MS = 1.0, 86_400_000.0  # a day

# Without JSON's null, which no header can say.
DeadlineMs = Annotated[
    Annotated[float, Field(ge=_SHORTEST_MS, le=_LONGEST_MS)] | SkipJsonSchema[None],
    Header(description="answer or refuse within so many ms; else DETSERVER_DEADLINE_S"),
]
"""The header of a request."""

_HEADER = b"x-deadline-ms"

_PATH = re.compile(r"/infer/(?P<implementation>[^/]*)|/v2/models/(?P<model>[^/]+)(/versions/[^/]*)?/infer")

# Of a deadline, and at most: what is left for the answer's way to the client.
_WAY_BACK, _WAY_BACK_S = 0.1, 0.05


@dataclass(frozen=True)
class Asked:
    """What a request asks for, as it says so; a name and a number that is not there are None."""

    implementation: str
    model_set: str | None
    deadline_ms: float | None


def asked_for(scope: Scope) -> Asked | None:
    """What a request for detections asks for; None for every other one, and for one that is wrong.

    Args:
        scope: of ASGI.
    """
    found = _PATH.fullmatch(scope["path"])
    if found is None or scope["method"] != "POST":
        return None
    name, model = found["implementation"], found["model"]
    if name is not None:
        model_set = QueryParams(scope["query_string"]).get("model_set")
    else:
        name, model_set = key_of(model)
    said = next((value for key, value in scope["headers"] if key == _HEADER), None)
    try:
        deadline_ms = None if said is None else float(said)
    except ValueError:
        return None
    if deadline_ms is not None and not _SHORTEST_MS <= deadline_ms <= _LONGEST_MS:
        return None
    return Asked(name, model_set or None, deadline_ms)


def deadline(started: float, deadline_ms: float | None, default_s: float) -> float:
    """When a request has to be answered so that its client has the answer in time, by `time.perf_counter`.

    Args:
        started: when its headers were there.
        deadline_ms: of its client, from then on; None where it has none.
        default_s: what holds then.
    """
    allowed_s = default_s if deadline_ms is None else 1e-3 * deadline_ms
    return started + allowed_s - min(_WAY_BACK * allowed_s, _WAY_BACK_S)
