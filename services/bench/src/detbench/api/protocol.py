"""How detections are asked for: detserver's own `POST /infer`, or the Open Inference Protocol of any server.

A protocol makes the request for a photo and reads the answer to it. It is data: the processes of the load generator
are told it as JSON.
"""

import base64
import io
import itertools
import math
import struct
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple
from urllib.parse import quote

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json, to_json

from detbench.api.schemas import Inference
from detbench.errors import DetbenchError

BoxOrder = Literal["xyxy", "yxyx", "xywh", "cxcywh"]

_BINARY = "application/octet-stream"
_DATATYPES = {"FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}


@dataclass(frozen=True)
class Message:
    """A request to `POST` on `path`, which begins with a slash: what its body is, that in pieces, and further headers.

    Pieces, because a copy of a photo takes time that the server on this machine needs.
    """

    path: str
    content_type: str
    content: tuple[bytes, ...]
    headers: Mapping[str, str] = field(default_factory=dict)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Native(_Strict):
    """detserver's own."""

    kind: Literal["native"] = "native"
    health: ClassVar[str] = "/health"

    def message(self, implementation: str, model_set: str, image: bytes, content_type: str) -> Message:
        """The request for the detections in one encoded image."""
        path = f"/infer/{implementation}?model_set={model_set}"
        return Message(path=path, content_type=content_type, content=(image,))

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
    health: ClassVar[str] = "/v2/health/live"
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
            return Message(path=path, content_type="application/json", content=(content,))
        length = struct.pack("<I", len(image))
        picture["parameters"] = {"binary_data_size": len(length) + len(image)}
        head = to_json({"inputs": [picture], "outputs": outputs})
        return Message(
            path=path,
            content_type=_BINARY,
            content=(head, length, image),
            headers={"Inference-Header-Content-Length": str(len(head))},
        )

    def inference(self, content: bytes, image: bytes) -> Inference:
        """What an answer to the request for `image` says.

        Raises:
            ValidationError, ValueError: it is malformed, or lacks a tensor; the message is short and without values.
        """
        try:
            answer = from_json(content, allow_inf_nan=True)
            found = {each["name"]: _flat(each) for each in answer["outputs"]}
            said = answer.get("parameters") or {}
            timings = {name.removesuffix("_ms"): float(ms) for name, ms in said.items() if name.endswith("_ms")}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError("malformed answer: truncated, or not of the Open Inference Protocol") from error
        return Inference.model_validate(
            {
                "implementation": str(answer.get("model_name", "")),
                "model_set": str(said.get("model_set", "")),
                "total_inference_time_ms": timings.get("forward", 0.0) + timings.get("postprocess", 0.0),
                "timings_ms": timings,
                "batch_size": said.get("batch_size", 1),
                "replica": said.get("replica"),
                "detections": self._detections(found, image),
            }
        )

    def _detections(self, found: Mapping[str, list[Any]], image: bytes) -> list[dict[str, Any]]:
        outputs = self.tensors.outputs
        if outputs[0].model is None:
            return [_sorted(name, _rows(found, each, image)) for name, each in zip(self.models, outputs, strict=True)]
        (together,) = outputs
        rows_of: list[list[_Row]] = [[] for _ in self.models]
        try:
            for row in _rows(found, together, image):
                if row.model < 0:
                    raise IndexError
                rows_of[row.model].append(row)
        except (IndexError, TypeError) as error:
            count = len(self.models)
            raise ValueError(f"malformed answer: {together.model}: not one of {count} detectors") from error
        return [_sorted(name, rows) for name, rows in zip(self.models, rows_of, strict=True)]


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


class _Row(NamedTuple):
    score: float
    box: tuple[float, ...]
    label: int
    model: int


def _flat(tensor: dict[str, Any]) -> list[Any]:
    """The values of a tensor whose data are in the JSON, flat or nested as its shape.

    Raises:
        ValueError, LookupError, TypeError: they are not, are no numbers, or not as many as its shape says.
    """
    if tensor["datatype"] not in _DATATYPES:
        raise ValueError(tensor["datatype"])
    data = tensor["data"]
    while data and isinstance(data[0], list):
        data = list(itertools.chain.from_iterable(data))
    if len(data) != math.prod(tensor["shape"]):
        raise ValueError("another shape")
    return data  # type: ignore[no-any-return]


# Without numpy: for the few rows of an answer it takes longer, on cores that a server on this machine needs.
def _rows(found: Mapping[str, list[Any]], names: OutputTensors, image: bytes) -> list[_Row]:
    """The detections in the tensors `names`, with boxes as the reference has them.

    Raises:
        ValueError: a tensor is missing, or they are of different length, or hold what is no number.
    """
    wanted = [names.boxes, names.scores, names.labels, names.model, names.count]
    if missing := [name for name in wanted if name is not None and name not in found]:
        raise ValueError(f"malformed answer: no tensor {', '.join(missing)}")
    numbers, scores, labels = (found[name] for name in (names.boxes, names.scores, names.labels))
    models = [0] * len(scores) if names.model is None else found[names.model]
    if len({len(numbers) / 4, len(scores), len(labels), len(models)}) > 1:
        raise ValueError(f"malformed answer: {names.boxes}, {names.scores} and {names.labels} differ in length")
    boxes: Iterable[tuple[float, ...]] = zip(*[iter(numbers)] * 4, strict=True)
    try:
        if names.order != "xyxy" or names.relative:
            width, height = _size(image) if names.relative else (1, 1)
            corners = _CORNERS[names.order]
            boxes = [
                (left * width, top * height, right * width, bottom * height)
                for left, top, right, bottom in (corners(*box) for box in boxes)
            ]
        shift = 1 - names.first_label
        rows = [
            _Row(score, box, int(label) + shift, model)
            for score, box, label, model in zip(scores, boxes, labels, models, strict=True)
        ]
        return rows if names.count is None else rows[: max(0, int(found[names.count][0]))]
    except (TypeError, ValueError, OverflowError, LookupError) as error:
        raise ValueError("malformed answer: a tensor holds what is no number of its kind") from error


_CORNERS: Mapping[BoxOrder, Callable[[float, float, float, float], tuple[float, float, float, float]]] = {
    "xyxy": lambda left, top, right, bottom: (left, top, right, bottom),
    "yxyx": lambda top, left, bottom, right: (left, top, right, bottom),
    "xywh": lambda left, top, width, height: (left, top, left + width, top + height),
    "cxcywh": lambda x, y, width, height: (x - width / 2, y - height / 2, x + width / 2, y + height / 2),
}
"""To x1, y1, x2, y2."""


@lru_cache(maxsize=1000)
def _size(image: bytes) -> tuple[int, int]:
    """Width and height of an encoded picture, upright."""
    with Image.open(io.BytesIO(image)) as opened:
        sideways = opened.getexif().get(0x0112, 1) >= 5
        width, height = opened.size
        return (height, width) if sideways else (width, height)


def _sorted(name: str, rows: list[_Row]) -> dict[str, Any]:
    """The `ModelDetections` of one detector, by descending score; rows of one score keep their order."""
    try:
        rows = sorted(rows, key=lambda row: -row.score)
    except TypeError as error:
        raise ValueError("malformed answer: a score is no number") from error
    return {
        "model_name": name,
        "boxes": [row.box for row in rows],
        "scores": [row.score for row in rows],
        "labels": [row.label for row in rows],
    }
