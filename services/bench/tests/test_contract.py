"""What detbench reads is what a detserver's own description, /openapi.json, says that it answers."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from detbench.api import schemas
from detbench.measure.server_process import ServerProcess
from detserver.http import schemas as served

Schema = dict[str, Any]

# Every call of `detbench.api.client`: method, path, query, and what it reads of the answer.
CALLS: list[tuple[str, str, tuple[str, ...], Any]] = [
    ("get", "/health", (), schemas.Health),
    ("get", "/implementations", (), list[schemas.ImplementationStatus]),
    ("get", "/model-sets/{model_set}", (), schemas.ModelSetStatus),
    ("get", "/vram", (), schemas.VramStatus),
    ("get", "/device", (), schemas.DeviceState),
    ("post", "/vram/reset", (), schemas.VramStatus),
    ("post", "/implementations/{implementation}/load", ("model_set",), schemas.Loaded),
    ("post", "/implementations/{implementation}/unload", ("model_set",), Any),
    ("post", "/implementations/{implementation}/kernels", ("model_set", "in_process"), schemas.Kernels),
    ("post", "/infer/{implementation}", ("model_set",), schemas.Inference),
    ("post", "/time/{implementation}", ("model_set", "batch_size", "repeats"), schemas.Timed),
]
# What a cluster alone answers, whose description no server of one process has.
OF_REPLICAS = (list[schemas.ReplicaAnswer], list[served.ReplicaAnswer])
# The server shares one schema between /health, where weights may not have been needed yet, and /model-sets.
NULL_ONLY_IN_HEALTH = {"models[].source", "models[].fingerprint"}


@pytest.fixture(scope="module")
def description(server: ServerProcess) -> Schema:
    found: Schema = httpx.get(f"{server.host}/openapi.json").raise_for_status().json()
    return found


def differences(described: Schema, call: tuple[str, str, tuple[str, ...], Any]) -> Iterator[str]:
    """What is not as the description says, a line each."""
    method, path, query, model = call
    operation = described["paths"].get(path, {}).get(method)
    if operation is None:
        yield f"{method} {path} is not there"
        return
    known = {each["name"] for each in operation["parameters"]} if query else set()
    yield from (f"{path} takes no {name}" for name in query if name not in known)
    theirs = operation["responses"]["200"]["content"]["application/json"]["schema"]
    ours = TypeAdapter(model).json_schema()
    yield from _mismatches(ours, theirs, ours.get("$defs", {}), described["components"]["schemas"], "")


def _mismatches(ours: Schema, theirs: Schema, our_parts: Schema, their_parts: Schema, place: str) -> Iterator[str]:
    """Where `ours` would not take every value of `theirs`; both are JSON Schemas as pydantic writes them."""

    def below(mine: Schema, other: Schema, where: str) -> list[str]:
        return list(_mismatches(mine, other, our_parts, their_parts, where))

    ours, theirs = _resolved(ours, our_parts), _resolved(theirs, their_parts)
    if "anyOf" in theirs:
        skipped = {"null"} if place in NULL_ONLY_IN_HEALTH else set()
        for each in theirs["anyOf"]:
            yield from () if each.get("type") in skipped else below(ours, each, place)
    elif "anyOf" in ours:
        found = [below(each, theirs, place) for each in ours["anyOf"]]
        yield from min(found, key=len)
    elif "properties" in ours:
        yield from _of_properties(ours, theirs, below, place)
    elif ours.get("type") == theirs.get("type") == "object":
        values = theirs["properties"].values() if "properties" in theirs else [theirs["additionalProperties"]]
        for each in values if isinstance(ours["additionalProperties"], dict) else ():
            yield from below(ours["additionalProperties"], each, f"{place}.*")
    elif ours.get("type") == theirs.get("type") == "array":
        yield from _of_items(ours, theirs, below, place)
    elif not _takes(ours, theirs):
        yield f"{place} is {theirs}, detbench takes {ours}"


def _of_properties(
    ours: Schema, theirs: Schema, below: Callable[[Schema, Schema, str], list[str]], place: str
) -> Iterator[str]:
    for name, mine in ours["properties"].items():
        where = f"{place}.{name}".removeprefix(".")
        other = theirs.get("properties", {}).get(name)
        if other is None:
            yield f"{where} is in no answer"
        elif name in theirs.get("required", ()):
            yield from below(mine, other, where)
        elif name in ours.get("required", ()) or mine.get("default") != other.get("default"):
            yield f"{where} may be left out, and then means something else"


def _of_items(
    ours: Schema, theirs: Schema, below: Callable[[Schema, Schema, str], list[str]], place: str
) -> Iterator[str]:
    if ours.get("minItems", 0) > theirs.get("minItems", 0) and "prefixItems" in ours:
        yield f"{place} may have fewer items than {ours['minItems']}"
    fixed = ours.get("prefixItems", [])
    others = theirs.get("prefixItems") or [theirs["items"]] * max(1, len(fixed))
    for mine, other in zip(fixed or [ours["items"]] * len(others), others, strict=True):
        yield from below(mine, other, f"{place}[]".removeprefix("."))


def _takes(ours: Schema, theirs: Schema) -> bool:
    values = {repr(value) for value in _values(theirs)}
    if ours.get("enum") or "const" in ours:
        return bool(values) and values <= {repr(value) for value in _values(ours)}
    type_, others = ours.get("type"), theirs.get("type")
    return type_ is None or type_ == others or (type_, others) == ("number", "integer")


def _values(schema: Schema) -> list[Any]:
    return schema.get("enum") or ([schema["const"]] if "const" in schema else [])


def _resolved(schema: Schema, parts: Schema) -> Schema:
    return parts[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]} {call[1]}")
def test_every_field_that_is_read_is_in_the_servers_description(description: Schema, call):
    assert list(differences(description, call)) == []


def test_every_field_that_is_read_of_what_all_replicas_answer_is_in_it():
    ours, theirs = TypeAdapter(OF_REPLICAS[0]).json_schema(), TypeAdapter(OF_REPLICAS[1]).json_schema()
    assert list(_mismatches(ours, theirs, ours["$defs"], theirs["$defs"], "")) == []


def test_every_model_of_an_answer_is_held_to_the_description():
    read = [*(model for *_, model in CALLS), OF_REPLICAS[0]]
    held = {name for model in read for name in (TypeAdapter(model).json_schema().get("$defs", {}))}
    held |= {getattr(model, "__name__", "") for model in read}
    models = {name for name, each in vars(schemas).items() if schemas.Response in getattr(each, "__mro__", ())[1:]}
    assert models <= held


def set_type(name: str, type_: str) -> Callable[[Schema], object]:
    return lambda component: component["properties"].update({name: {"type": type_}})


def drop(name: str) -> Callable[[Schema], object]:
    return lambda component: component["properties"].pop(name)


@pytest.mark.parametrize(
    ("component", "change", "reason"),
    [
        ("ImplementationInfo", drop("technique"), "[].technique is in no answer"),
        ("ModelInfo", drop("fill_color"), "models[].fill_color is in no answer"),
        ("Timings", set_type("queue", "string"), "timings_ms.* is {'type': 'string'}"),
        ("Inference", set_type("batch_size", "number"), "batch_size is {'type': 'number'}"),
        ("Loaded", set_type("remark", "null"), "remark is {'type': 'null'}"),
        ("Health", lambda component: component["required"].remove("driver"), "driver may be left out"),
    ],
)
def test_another_answer_would_be_told(description: Schema, component: str, change: Callable, reason: str):
    changed = copy.deepcopy(description)
    change(changed["components"]["schemas"][component])
    said = [line for call in CALLS for line in differences(changed, call)]
    assert any(line.startswith(reason) for line in said), said
