"""What the users of a load test send, and what a good answer to it is."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from detbench.api.client import ServerClient
from detbench.api.oip import OipClient
from detbench.api.protocol import Native, Oip, Protocol
from detbench.api.schemas import Inference
from detbench.datasets import fetch_or_open

_NATIVE = Native()


@dataclass(frozen=True)
class Image:
    """One encoded photo, in memory; `sha256` is that of its file."""

    name: str
    sha256: str
    content_type: str
    data: bytes


@dataclass(frozen=True)
class Workload:
    """What the users of this process send, how, and what a good answer holds."""

    protocol: Protocol
    implementation: str
    model_set: str
    model_names: tuple[str, ...]
    images: tuple[Image, ...]


def prepare_workload(
    host: str,
    implementation: str,
    model_set: str,
    dataset: str,
    max_images: int,
    data_dir: Path,
    protocol: Protocol = _NATIVE,
) -> Workload:
    """Load the photos into memory, and the implementation into the server.

    Raises:
        DatasetError: the dataset is not there; `sample` is fetched.
        ServerError: no answer, or the server refuses to load.
    """
    images = read_images(dataset, max_images, data_dir)
    models = load_into_server(host, implementation, model_set, protocol)
    workload = Workload(protocol, implementation, model_set, models, images)
    # What there is by now stays. The garbage collector would look through it in the middle of a load: 17 ms in which
    # nothing is sent, and no answer read.
    gc.collect()
    gc.freeze()
    return workload


@lru_cache(maxsize=1)
def read_images(dataset: str, max_images: int, data_dir: Path) -> tuple[Image, ...]:
    """The first photos of a dataset, in memory; those of the last call are kept there.

    Raises:
        DatasetError: the dataset is not there; `sample` is fetched.
    """
    photos = fetch_or_open(dataset, data_dir, max_images).photos
    return tuple(Image(photo.name, photo.sha256, photo.content_type, photo.read()) for photo in photos)


def load_into_server(host: str, implementation: str, model_set: str, protocol: Protocol = _NATIVE) -> tuple[str, ...]:
    """Load the implementation into the server; it does nothing where it is loaded already.

    Returns:
        Names of the models that an answer has detections of, in their order.

    Raises:
        ServerError: no answer, or the server refuses to load.
    """
    if isinstance(protocol, Oip):
        with OipClient(host, protocol) as oip:
            oip.load(implementation, model_set)
        return protocol.models
    with ServerClient(host) as client:
        client.load(implementation, model_set)
        return tuple(model.model_name for model in client.model_set(model_set).models)


def check_answer(body: bytes, image: Image, workload: Workload) -> Inference:
    """Parse the answer to the request for `image`.

    Raises:
        ValueError: not well-formed, or not detections of every model of the set; the message is short and without
            values and places, so that equal failures count as one.
    """
    if not body:
        raise ValueError("empty answer")
    try:
        answer = workload.protocol.inference(body, image.data)
    except ValidationError as error:
        raise ValueError(_reason(error, workload.model_names)) from error
    names = tuple(detections.model_name for detections in answer.detections)
    if names != workload.model_names:
        raise ValueError(f"detections of {', '.join(names) or 'no model'}, not of {', '.join(workload.model_names)}")
    return answer


def _reason(error: ValidationError, model_names: Sequence[str]) -> str:
    """What is wrong first in an answer."""
    first = error.errors(include_url=False, include_input=False)[0]
    match first["type"], first["loc"]:
        case "json_invalid", _:
            return "malformed answer: truncated, or no JSON"
        case "finite_number", ("detections", int(place), str(field), *_) if place < len(model_names):
            return f"malformed answer: a NaN or an infinity among the {field} of {model_names[place]}"
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    return f"malformed answer: {where}: {first['msg']}"
