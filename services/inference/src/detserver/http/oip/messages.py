"""Inference requests and answers as bytes: JSON, and tensors in binary after it (Triton's binary data extension).

The header `Inference-Header-Content-Length` tells how many bytes of a body are JSON; all of them are without it.
"""

import base64
import binascii
import struct
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr, ValidationError
from pydantic_core import to_json

from detserver.engine.work import Answer
from detserver.errors import BadInferRequest
from detserver.http.oip.tensors import IMAGE, OUTPUTS, Tensor

# Each value of JSON takes ten times the bytes of its text while it is parsed. A request that is right has few, whatever
# the size of its picture: base64 has no commas and no brackets.
_MOST_VALUES = 10_000
_SEPARATORS = (b",", b"[", b"{")

# Of bytes, and of elements: numbers beyond are told to be wrong without being printed.
_FAR_TOO_MANY = 1 << 64

_LONGEST_US = 86_400_000_000  # a day

_LENGTH = struct.Struct("<I")

Piece = bytes | memoryview


class _Parameters(BaseModel):
    """Of the request, an input or an output; what is not here has no meaning to this server, and is passed over."""

    binary_data: StrictBool | None = None
    binary_data_output: StrictBool = False
    binary_data_size: Annotated[StrictInt, Field(ge=0, lt=_FAR_TOO_MANY)] | None = None
    classification: StrictInt | None = None
    shared_memory_region: StrictStr | None = None
    timeout: Annotated[StrictInt, Field(ge=0, le=_LONGEST_US)] = 0  # microseconds; 0 is none


class _Input(BaseModel):
    name: StrictStr
    shape: list[Annotated[StrictInt, Field(gt=-_FAR_TOO_MANY, lt=_FAR_TOO_MANY)]]
    datatype: StrictStr
    parameters: _Parameters = Field(default_factory=_Parameters)  # a default of its own would be copied
    data: Any = None


class _Output(BaseModel):
    name: StrictStr
    parameters: _Parameters = Field(default_factory=_Parameters)


class _Request(BaseModel):
    id: StrictStr = ""
    parameters: _Parameters = Field(default_factory=_Parameters)
    inputs: list[_Input]
    outputs: list[_Output] | None = None


class InferRequest:
    """What one inference request asks for.

    Args:
        body: the whole body, in the pieces that arrived: the picture is copied once.
        json_bytes: the header `Inference-Header-Content-Length`; None where there is none, and 0 where all of the body
            is the picture.

    Attributes:
        id: of the client, which its answer has, too; empty where it gave none.
        image: the encoded picture.
        timeout_s: within which the client wants the answer; None where it does not say.
        outputs: the tensors that it wants, in its order, with whether it wants them in binary.

    Raises:
        BadInferRequest: it does not follow the protocol, or is not what a model here takes.
    """

    def __init__(self, body: Sequence[bytes], json_bytes: int | None) -> None:
        size = sum(map(len, body))
        if json_bytes == 0:
            self.id, self.image, self.timeout_s = "", b"".join(body), None
            self.outputs = [(tensor, True) for tensor in OUTPUTS]
            return
        if json_bytes is not None and json_bytes > size:
            raise BadInferRequest(f"Inference-Header-Content-Length is {json_bytes}, and the body {size} bytes")
        text, binary = _split(body, size if json_bytes is None else json_bytes)
        request = _parsed(text)
        self.id = request.id
        self.timeout_s = 1e-6 * request.parameters.timeout or None
        self.image = _image(request.inputs, binary)
        self.outputs = list(_wanted(request))


def encoded(answer: Answer, wanted: Sequence[tuple[Tensor, bool]]) -> tuple[bytes, list[bytes]]:
    """The tensors of an answer: the JSON of their list, and what follows it in binary.

    Args:
        wanted: the tensors, with whether they are to be binary.
    """
    described, binary = [], []
    count = sum(len(found.scores) for found in answer.outputs)
    for tensor, in_binary in wanted:
        shape = (count, *tensor.shape[1:])
        head: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": shape}
        if in_binary:
            binary.append(tensor.values(answer.outputs).tobytes())
            head["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            head["data"] = tensor.flat(answer.outputs)
        described.append(head)
    return to_json(described), binary


def _parsed(text: bytes) -> _Request:
    if sum(text.count(separator) for separator in _SEPARATORS) > _MOST_VALUES:
        raise BadInferRequest(f"the JSON of the request has more than {_MOST_VALUES} values")
    try:
        return _Request.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInferRequest(f"{where or 'the JSON of the request'}: {first['msg']}") from error


def _split(pieces: Sequence[Piece], at: int) -> tuple[bytes, list[Piece]]:
    """The first `at` bytes of what follows each other, and the rest, which is not copied."""
    for number, piece in enumerate(pieces):
        if at < len(piece):
            view = memoryview(piece)
            return b"".join((*pieces[:number], view[:at])), [view[at:], *pieces[number + 1 :]]
        at -= len(piece)
    return b"".join(pieces), []


def _image(inputs: Sequence[_Input], binary: Sequence[Piece]) -> bytes:
    """The picture in the one input; `binary` is what follows the JSON.

    Raises:
        BadInferRequest: there is another input, or it is not one picture.
    """
    names = [each.name for each in inputs]
    if names != [IMAGE.name]:
        raise BadInferRequest(f"inputs: a model here has one, `{IMAGE.name}`; the request has {_listed(names)}")
    (image,) = inputs
    if image.datatype != IMAGE.datatype:
        raise BadInferRequest(
            f"input `{image.name}`: datatype {image.datatype[:20]}; it is {IMAGE.datatype}, an encoded picture"
        )
    if not image.shape or any(size != 1 for size in image.shape):
        raise BadInferRequest(f"input `{image.name}`: shape {image.shape[:8]}; it is [1], one picture a request")
    if image.parameters.shared_memory_region is not None:
        raise BadInferRequest(f"input `{image.name}`: this server has no shared memory; send it in the body")
    size, following = image.parameters.binary_data_size, sum(map(len, binary))
    if size is None:
        if following:
            raise BadInferRequest(f"{following} bytes follow the JSON, and no input has a binary_data_size")
        return _of_json(image.data)
    if image.data is not None:
        raise BadInferRequest(f"input `{image.name}`: it has both data and a binary_data_size")
    if size != following:
        raise BadInferRequest(f"input `{image.name}`: binary_data_size is {size}; {following} bytes follow the JSON")
    return _of_binary(binary)


def _of_json(data: object) -> bytes:
    """The picture in the JSON of a tensor with one element: base64, because JSON has no bytes."""
    while isinstance(data, list) and len(data) == 1:
        (data,) = data
    if not isinstance(data, str):
        raise BadInferRequest(f"input `{IMAGE.name}`: its data is to be one string, the picture's file in base64")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInferRequest(f"input `{IMAGE.name}`: its data is no base64: {error}") from error


def _of_binary(data: Sequence[Piece]) -> bytes:
    """The picture in the binary form of a BYTES tensor with one element: its length, and then itself."""
    size = sum(map(len, data))
    length, picture = _split(data, _LENGTH.size)
    if len(length) < _LENGTH.size or _LENGTH.unpack(length)[0] != size - _LENGTH.size:
        raise BadInferRequest(
            f"input `{IMAGE.name}`: {size} bytes of binary data are not one element after its length in 4 bytes"
        )
    return b"".join(picture)


def _wanted(request: _Request) -> Iterator[tuple[Tensor, bool]]:
    everywhere = request.parameters.binary_data_output
    if not request.outputs:
        yield from ((tensor, everywhere) for tensor in OUTPUTS)
        return
    known = {tensor.name: tensor for tensor in OUTPUTS}
    names = [output.name for output in request.outputs]
    if len(names) > len(set(names)) or not known.keys() >= set(names):
        raise BadInferRequest(f"outputs: {_listed(names)}; a model here has {_listed(list(known))}, each once")
    for output in request.outputs:
        if output.parameters.classification is not None or output.parameters.shared_memory_region is not None:
            raise BadInferRequest(f"output `{output.name}`: this server has no classification and no shared memory")
        binary = output.parameters.binary_data
        yield known[output.name], everywhere if binary is None else binary


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name[:40]}`" for name in names[:8]) or "none"
