"""`POST /v2/models/{model}/infer`."""

from collections.abc import Callable

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from detserver.engine.work import Answer
from detserver.errors import BadInferRequest
from detserver.http.exchange import Exchange
from detserver.http.oip.messages import InferRequest, encoded
from detserver.http.oip.models import VERSION, key_of
from detserver.http.stages import Stages
from detserver.http.upload import read_pieces

_JSON_BYTES = "inference-header-content-length"


class Inference(Exchange):
    """One request to infer with `model`."""

    def __init__(self, model: str) -> None:
        super().__init__(*key_of(model))
        self._model = model

    async def read(self, request: Request, max_bytes: int, limit_s: float, hold: Callable[[int], None]) -> bytes:
        """The encoded image in the tensor `image`.

        Raises:
            BadInferRequest: see `InferRequest`; or what `read_pieces` raises.
        """
        said = request.headers.get(_JSON_BYTES)
        if said is not None and not (said.isascii() and said.isdecimal() and len(said) < 20):
            raise BadInferRequest("Inference-Header-Content-Length is no number of bytes")
        body = await read_pieces(request, max_bytes, limit_s, hold)
        asked = self._asked = InferRequest(body, None if said is None else int(said))
        self.timeout_ms = None if asked.timeout_s is None else 1e3 * asked.timeout_s
        return asked.image

    def encode(self, answer: Answer) -> None:
        """Make the tensors that the request asks for."""
        self._tensors, self._binary = encoded(answer, self._asked.outputs)

    def response(self, set_name: str, answer: Answer, stages: Stages, replica: str | None) -> Response:
        """The answer; its parameters are the batch's size, the timings, and what the tensor `model` counts."""
        head = {
            "model_name": self._model,
            "model_version": VERSION,
            **({"id": self._asked.id} if self._asked.id else {}),
            "parameters": {
                "implementation": self.implementation,
                "model_set": set_name,
                "models": ",".join(output.model_name for output in answer.outputs),
                "batch_size": answer.batch_size,
                **({"replica": replica} if replica else {}),
                **{f"{stage}_ms": milliseconds for stage, milliseconds in stages.milliseconds().items()},
            },
        }
        text = to_json(head)[:-1] + b',"outputs":' + self._tensors + b"}"
        if not self._binary:
            return Response(text, media_type="application/json")
        content = b"".join((text, *self._binary))
        return Response(content, media_type="application/octet-stream", headers={_JSON_BYTES: str(len(text))})
