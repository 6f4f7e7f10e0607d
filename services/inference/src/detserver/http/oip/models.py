"""Models as clients of the protocol see them: an implementation of a model set, such as `fastest@uniform`."""

from typing import Any

from starlette.requests import Request

from detserver.engine.work import Key
from detserver.errors import UnknownModelVersion
from detserver.http.oip.tensors import IMAGE, OUTPUTS
from detserver.models.model_sets import ModelSet

VERSION = "1"
"""Of every model, the only one."""

_PLATFORM = "detserver"
# Triton's names of types, in its configuration alone.
_CONFIGURED = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64", "INT32": "TYPE_INT32"}


def key_of(model: str) -> tuple[str, str | None]:
    """Names of the implementation and of the model set in the name of a model; None is the server's default set."""
    implementation, _, model_set = model.partition("@")
    return implementation, model_set or None


def model_name(key: Key, default_model_set: str) -> str:
    """The name of a model; of the default set without it."""
    implementation, model_set = key
    return implementation if model_set == default_model_set else f"{implementation}@{model_set}"


def check_version(request: Request) -> None:
    """Raise `UnknownModelVersion` where the path of a request names another version than there is."""
    version = request.path_params.get("version", VERSION)
    if version != VERSION:
        raise UnknownModelVersion(f"no version {version[:20]!r}: every model has version {VERSION} alone")


def metadata(model: str) -> dict[str, Any]:
    """What a model takes and answers."""
    return {
        "name": model,
        "versions": [VERSION],
        "platform": _PLATFORM,
        "inputs": [_described(IMAGE.name, IMAGE.datatype, IMAGE.shape)],
        "outputs": [_described(tensor.name, tensor.datatype, tensor.shape) for tensor in OUTPUTS],
    }


def config(model: str, model_set: ModelSet, on_gpu: bool, batch_size: int) -> dict[str, Any]:
    """Triton's configuration of a model, as far as it says something here.

    Args:
        batch_size: of requests that wait together and run together. `max_batch_size` is 0 all the same: a request has
            one picture, and its tensors have no dimension of a batch.
    """
    return {
        "name": model,
        "platform": _PLATFORM,
        "backend": _PLATFORM,
        "max_batch_size": 0,
        "input": [_configured(IMAGE.name, IMAGE.datatype, IMAGE.shape)],
        "output": [_configured(tensor.name, tensor.datatype, tensor.shape) for tensor in OUTPUTS],
        "instance_group": [{"kind": "KIND_GPU" if on_gpu else "KIND_CPU", "count": 1}],
        "parameters": {
            "model_set": {"string_value": model_set.name},
            "models": {"string_value": ",".join(spec.name for spec in model_set.models)},
            "preferred_batch_size": {"string_value": str(batch_size)},
        },
    }


def _described(name: str, datatype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def _configured(name: str, datatype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "data_type": _CONFIGURED[datatype], "dims": list(shape)}
