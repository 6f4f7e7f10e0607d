"""The image of a request, as a multipart field or as the raw body, never more of it than the limit."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from detserver.errors import (
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    EmptyBody,
    MalformedForm,
    MissingField,
    UnsupportedMediaType,
)

FIELD = "file"
UNNAMED_TYPE = "application/octet-stream"
"""What clients call bytes whose kind they do not know; the decoder looks at them anyway."""


_Read = TypeVar("_Read")


async def read_image(request: Request, max_bytes: int, limit_s: float, hold: Callable[[int], None]) -> bytes:
    """The bytes of the uploaded image.

    Args:
        max_bytes: limit for the body; a form may be a little longer than the image in it.
        limit_s, hold: see `read_pieces`.

    Raises:
        EmptyBody, MalformedForm, MissingField, UnsupportedMediaType: see there; or what `read_pieces` raises.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _arriving(_form_file(_pieces(request, max_bytes, hold), request.headers["content-type"]), limit_s)
    data = await read_body(request, max_bytes, limit_s, hold)
    if kind == UNNAMED_TYPE or kind.startswith("image/"):
        return data
    if not data:
        raise EmptyBody(f"the body is empty: send an image as multipart field `{FIELD}` or as the raw body")
    raise UnsupportedMediaType(
        f"Content-Type {kind or 'is missing'}: send multipart/form-data with the field `{FIELD}`, or the raw image "
        f"with Content-Type image/jpeg, image/png, image/webp, image/bmp or {UNNAMED_TYPE}"
    )


async def read_body(request: Request, max_bytes: int, limit_s: float, hold: Callable[[int], None]) -> bytes:
    """The whole body of a request; see `read_pieces`."""
    return b"".join(await read_pieces(request, max_bytes, limit_s, hold))


async def read_pieces(request: Request, max_bytes: int, limit_s: float, hold: Callable[[int], None]) -> list[bytes]:
    """The whole body of a request, in the pieces that arrived.

    Args:
        max_bytes: limit for the body.
        limit_s: how long the client may take, so that slow ones cannot pile up.
        hold: told of the size of each piece that arrives; it may raise.

    Raises:
        BodyTooLarge, BodyTimeout, ClientGone, UnsupportedMediaType: see there.
    """

    async def listed() -> list[bytes]:
        return [piece async for piece in _pieces(request, max_bytes, hold)]

    return await _arriving(listed(), limit_s)


async def _arriving(reading: Coroutine[Any, Any, _Read], limit_s: float) -> _Read:
    try:
        async with asyncio.timeout(limit_s):
            return await reading
    except TimeoutError as error:
        raise BodyTimeout(f"the body did not arrive within {limit_s:g} s") from error
    except ClientDisconnect as error:
        raise ClientGone("the client closed the connection before its body was there") from error


async def _pieces(request: Request, max_bytes: int, hold: Callable[[int], None]) -> AsyncIterator[bytes]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(f"Content-Encoding {encoding}: send the body as it is, not compressed")
    received = 0
    async for piece in request.stream():
        received += len(piece)
        if received > max_bytes:
            raise _too_large(max_bytes)
        hold(len(piece))
        yield piece


async def _form_file(body: AsyncIterator[bytes], content_type: str) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise MalformedForm("the body is no multipart form: its Content-Type names no boundary")
    form = _Form()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin_part,
                "on_header_field": form.add_to_name,
                "on_header_value": form.add_to_value,
                "on_header_end": form.end_header,
                "on_part_data": form.add_to_part,
                "on_part_end": form.end_part,
                "on_end": form.end,
            },
        )
        async for piece in body:
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise MalformedForm(f"the body is no multipart form: {' '.join(str(error).split())}") from error
    if not form.ended:
        raise MalformedForm("the body is no multipart form: it does not end with the boundary of its Content-Type")
    if form.file is None:
        raise MissingField(f"the form has no field called `{FIELD}`")
    return form.file


class _Form:
    """Keeps the first part in the field `file`, whether it has a file's name or not, and nothing of the others.

    Starlette's parser takes a part without a file's name for text of 1 MB at most, and decodes it.
    """

    def __init__(self) -> None:
        self.file: bytes | None = None
        self.ended = False
        self._name = self._value = b""
        self._part: bytearray | None = None

    def begin_part(self) -> None:
        self._name = self._value = b""
        self._part = None

    def add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        if self._name.lower() == b"content-disposition" and self.file is None:
            _, options = parse_options_header(self._value)
            if options.get(b"name") == FIELD.encode():
                self._part = bytearray()
        self._name = self._value = b""

    def add_to_part(self, data: bytes, start: int, end: int) -> None:
        if self._part is not None:
            self._part += memoryview(data)[start:end]

    def end_part(self) -> None:
        if self._part is not None:
            self.file = bytes(self._part)
            self._part = None

    def end(self) -> None:
        self.ended = True


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than the limit of {max_bytes / 1e6:g} MB")
