"""What a protocol makes of one request for detections: its image comes out of the body, and an answer goes back."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from detserver.engine.work import Answer
from detserver.http.stages import Stages


class Exchange(ABC):
    """One request and its answer.

    Attributes:
        implementation: that the request asks for.
        model_set: None is the server's default.
        timeout_ms: from the request's headers on, within which the body asks for the answer, once it is read; None
            where it does not.
    """

    def __init__(self, implementation: str, model_set: str | None) -> None:
        self.implementation = implementation
        self.model_set = model_set
        self.timeout_ms: float | None = None

    @abstractmethod
    async def read(self, request: Request, max_bytes: int, limit_s: float, hold: Callable[[int], None]) -> bytes:
        """The encoded image; see `upload.read_body` for arguments and errors."""

    @abstractmethod
    def encode(self, answer: Answer) -> None:
        """Make the bytes of the detections; what `response` adds, the timings, holds how long that took."""

    @abstractmethod
    def response(self, set_name: str, answer: Answer, stages: Stages, replica: str | None) -> Response:
        """The answer, of what `encode` has made; it names the `replica` of a cluster."""
