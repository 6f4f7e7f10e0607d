"""The image of a request, as a multipart field or as the raw body, never more of it than the limit."""

import asyncio

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from detserver.errors import BodyTimeout, BodyTooLarge, EmptyBody, MalformedForm, MissingField, UnsupportedMediaType

FIELD = "file"


async def read_image(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The bytes of the uploaded image.

    Args:
        max_bytes: limit for the body; a form may be a little longer than the image in it.
        timeout_s: how long the client may take, so that slow ones cannot pile up.

    Raises:
        EmptyBody, BodyTooLarge, BodyTimeout, UnsupportedMediaType, MalformedForm, MissingField: see there.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    limited = Request(request.scope, _limit(request, max_bytes))
    try:
        async with asyncio.timeout(timeout_s):
            if kind == "multipart/form-data":
                return await _form_file(limited)
            if kind.startswith("image/"):
                return await limited.body()
            if not await limited.body():
                raise EmptyBody(f"the body is empty: send an image as multipart field `{FIELD}` or as the raw body")
    except TimeoutError as error:
        raise BodyTimeout(f"the body did not arrive within {timeout_s:g} s") from error
    raise UnsupportedMediaType(
        f"Content-Type {kind or 'is missing'}: send multipart/form-data with the field `{FIELD}`, or the raw image "
        "with Content-Type image/jpeg, image/png, image/webp or image/bmp"
    )


async def _form_file(request: Request) -> bytes:
    # Files over 1 MB go to a temporary file while they arrive, so a form costs no memory.
    try:
        async with request.form(max_files=1, max_fields=16) as form:
            field = form.get(FIELD)
            if isinstance(field, UploadFile):
                return await field.read()
            raise MissingField(f"the form has no file in a field called `{FIELD}`")
    except HTTPException as error:
        raise MalformedForm(f"the body is no multipart form: {error.detail}") from error


def _limit(request: Request, max_bytes: int) -> Receive:
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise _too_large(max_bytes)
        return message

    return receive


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than the limit of {max_bytes / 1e6:g} MB")
