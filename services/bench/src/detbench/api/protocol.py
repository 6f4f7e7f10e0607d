"""How detections are asked for: detserver's own `POST /infer`, or the Open Inference Protocol of any server.

A protocol makes the request for a photo and reads the answer to it. It is data: the processes of the load generator
are told it as JSON.
"""

import base64
import io
import struct
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json, to_json

from detbench.api.schemas import Inference, ModelDetections
from detbench.errors import DetbenchError

BoxOrder = Literal["xyxy", "yxyx", "xywh", "cxcywh"]

_BINARY = "application/octet-stream"
_DATATYPES = {"FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}


@dataclass(frozen=True)
class Message:
    """A request to `POST` on `path`, which begins with a slash: its body, what that is, and further headers."""

    path: str
    content_type: str
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Native(_Strict):
    """detserver's own."""

    kind: Literal["native"] = "native"
    health: str = "/health"

    def message(self, implementation: str, model_set: str, image: bytes, content_type: str) -> Message:
        """The request for the detections in one encoded image."""
        return Message(path=f"/infer/{implementation}?model_set={model_set}", content_type=content_type, content=image)

    def inference(self, content: bytes, image: bytes) -> Inference:  # noqa: ARG002
        """What an answer to the request for `image` says.

        Raises:
            ValidationError, ValueError: it is malformed.
        """
        return Inference.model_validate_json(content)


class OutputTensors(_Strict):
    """The tensors that hold what one detector found, or, with `model`, what all of them found."""

    boxes: str = "boxes"
    scores: str = "scores"
    labels: str = "labels"
    model: str | None = Field(default=None, description="number of the detector of each row, from 0")
    count: str | None = Field(default=None, description="how many rows hold something; None: all do")
    order: BoxOrder = Field(default="xyxy", description="of the four numbers of a box")
    relative: bool = Field(default=False, description="whether boxes are shares of width and height, not pixels")
    first_label: int = Field(default=1, description="what this server calls the class that is 1 in the reference")


class Tensors(_Strict):
    """Which tensors of a server are what. The defaults are those of a detserver."""

    input: str = Field(default="image", description="takes the encoded picture: BYTES of shape [1]")
    shape: tuple[int, ...] = Field(default=(1,), description="of the input, for a server that wants a batch: [1, 1]")
    encoding: Literal["binary", "json"] = Field(
        default="binary", description="the picture as it is, or, for servers without the binary extension, in base64"
    )
    exact: bool = Field(
        default=False, description="whether it is to give the reference's answers, as far as float32 goes"
    )
    outputs: tuple[OutputTensors, ...] = Field(
        default=(OutputTensors(model="model"),),
        min_length=1,
        description="one for each detector in the order of the model set, or one with `model` for all",
    )

    @model_validator(mode="after")
    def _check(self) -> "Tensors":
        if len(self.outputs) > 1 and any(each.model for each in self.outputs):
            raise ValueError("`model` is for the tensors of all detectors together; there is one of [[outputs]] then")
        return self


class Oip(_Strict):
    """The Open Inference Protocol, over HTTP.

    `models` are the detectors of the model set, in their order.
    """

    kind: Literal["oip"] = "oip"
    health: str = "/v2/health/live"
    tensors: Tensors = Tensors()
    models: tuple[str, ...]

    @model_validator(mode="after")
    def _check(self) -> "Oip":
        outputs = self.tensors.outputs
        if outputs[0].model is None and len(outputs) != len(self.models):
            raise ValueError(
                f"{len(outputs)} of [[outputs]], and {len(self.models)} detectors: {', '.join(self.models)}"
            )
        return self

    def message(self, implementation: str, model_set: str, image: bytes, content_type: str) -> Message:  # noqa: ARG002
        """The request for the detections in one encoded image; its answer is asked for in JSON."""
        tensors = self.tensors
        picture: dict[str, Any] = {"name": tensors.input, "shape": tensors.shape, "datatype": "BYTES"}
        names = dict.fromkeys(
            name
            for each in tensors.outputs
            for name in (each.boxes, each.scores, each.labels, each.model, each.count)
            if name is not None
        )
        outputs = [{"name": name, "parameters": {"binary_data": False}} for name in names]
        path = f"/v2/models/{quote(implementation, safe='@')}/infer"
        if tensors.encoding == "json":
            picture["data"] = [base64.b64encode(image).decode()]
            outputs = [{"name": name} for name in names]
            content = to_json({"inputs": [picture], "outputs": outputs})
            return Message(path=path, content_type="application/json", content=content)
        element = struct.pack("<I", len(image)) + image
        picture["parameters"] = {"binary_data_size": len(element)}
        head = to_json({"inputs": [picture], "outputs": outputs})
        return Message(
            path=path,
            content_type=_BINARY,
            content=head + element,
            headers={"Inference-Header-Content-Length": str(len(head))},
        )

    def inference(self, content: bytes, image: bytes) -> Inference:
        """What an answer to the request for `image` says.

        Raises:
            ValidationError, ValueError: it is malformed, or lacks a tensor; the message is short and without values.
        """
        try:
            answer = from_json(content, allow_inf_nan=True)
            found = {each["name"]: _array(each) for each in answer["outputs"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("malformed answer: truncated, or not of the Open Inference Protocol") from error
        said = answer.get("parameters") or {}
        timings = {name.removesuffix("_ms"): ms for name, ms in said.items() if name.endswith("_ms")}
        return Inference(
            implementation=str(answer.get("model_name", "")),
            model_set=str(said.get("model_set", "")),
            total_inference_time_ms=timings.get("forward", 0.0) + timings.get("postprocess", 0.0),
            timings_ms=timings,
            batch_size=said.get("batch_size", 1),
            detections=list(self._detections(found, image)),
        )

    def _detections(self, found: dict[str, NDArray[Any]], image: bytes) -> list[ModelDetections]:
        outputs = self.tensors.outputs
        if outputs[0].model is None:
            return [
                _found(name, *_rows(found, each, image)[:3]) for name, each in zip(self.models, outputs, strict=True)
            ]
        boxes, scores, labels, number = _rows(found, outputs[0], image)
        assert number is not None
        if number.size and not (number.min() >= 0 and number.max() < len(self.models)):
            raise ValueError(f"malformed answer: {outputs[0].model}: not one of {len(self.models)} detectors")
        return [
            _found(name, boxes[mine], scores[mine], labels[mine])
            for place, name in enumerate(self.models)
            for mine in [number == place]
        ]


Protocol = Annotated[Native | Oip, Field(discriminator="kind")]


def read_tensors(path: Path) -> Tensors:
    """The tensors that a TOML file describes.

    Raises:
        DetbenchError: it cannot be read, or says something else.
    """
    try:
        return Tensors.model_validate(tomllib.loads(path.read_text()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DetbenchError(f"{path}: {where and f'{where}: '}{first['msg']}") from error
    except (OSError, ValueError) as error:
        raise DetbenchError(f"{path}: {error}") from error


def _array(tensor: dict[str, Any]) -> NDArray[Any]:
    """A tensor whose data are in the JSON.

    Raises:
        ValueError: they are not, or not as many as its shape says.
    """
    if tensor["datatype"] not in _DATATYPES:
        raise ValueError(tensor["datatype"])
    kind = np.int64 if tensor["datatype"].startswith(("INT", "UINT")) else np.float64
    return np.asarray(tensor["data"], kind).reshape(tensor["shape"])


def _rows(
    found: dict[str, NDArray[Any]], names: OutputTensors, image: bytes
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Boxes as the reference has them, of shape (N, 4), and scores, labels and numbers of the detectors, (N,)."""
    wanted = [names.boxes, names.scores, names.labels, names.model, names.count]
    if missing := [name for name in wanted if name is not None and name not in found]:
        raise ValueError(f"malformed answer: no tensor {', '.join(missing)}")
    boxes = found[names.boxes].reshape(-1, 4)
    scores, labels = found[names.scores].reshape(-1), found[names.labels].reshape(-1)
    number = None if names.model is None else found[names.model].reshape(-1)
    lengths = {len(each) for each in (boxes, scores, labels, number) if each is not None}
    if len(lengths) > 1:
        raise ValueError(f"malformed answer: {names.boxes}, {names.scores} and {names.labels} differ in length")
    rows = slice(None if names.count is None else int(found[names.count].reshape(-1)[0]))
    boxes = _corners(boxes[rows], names.order)
    if names.relative:
        boxes = boxes * np.tile(_size(image), 2)
    return boxes, scores[rows], labels[rows] + (1 - names.first_label), None if number is None else number[rows]


def _corners(boxes: NDArray[Any], order: BoxOrder) -> NDArray[Any]:
    """Boxes as x1, y1, x2, y2."""
    first, second, third, fourth = boxes.T
    match order:
        case "xyxy":
            return boxes
        case "yxyx":
            return np.stack((second, first, fourth, third), 1)
        case "xywh":
            return np.stack((first, second, first + third, second + fourth), 1)
        case "cxcywh":
            return np.stack((first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2), 1)


@lru_cache(maxsize=1000)
def _size(image: bytes) -> tuple[int, int]:
    """Width and height of an encoded picture, upright."""
    with Image.open(io.BytesIO(image)) as opened:
        sideways = opened.getexif().get(0x0112, 1) >= 5
        width, height = opened.size
        return (height, width) if sideways else (width, height)


def _found(name: str, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> ModelDetections:
    """What one detector found, by descending score."""
    best_first = np.argsort(-scores, kind="stable")
    return ModelDetections(
        model_name=name,
        boxes=boxes[best_first].tolist(),
        scores=scores[best_first].tolist(),
        labels=[int(label) for label in labels[best_first]],
    )
