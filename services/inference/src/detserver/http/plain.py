"""`POST /infer`: the image as it is, or in a form, and the JSON of a `schemas.Inference`."""

from collections.abc import Callable

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from detserver.engine.work import Answer
from detserver.http.exchange import Exchange
from detserver.http.stages import Stages
from detserver.http.upload import read_image


class Plain(Exchange):
    """One request to `POST /infer/{implementation}`."""

    async def read(self, request: Request, max_bytes: int, limit_s: float, hold: Callable[[int], None]) -> bytes:
        """The encoded image."""
        return await read_image(request, max_bytes, limit_s, hold)

    def encode(self, answer: Answer) -> None:
        """Make the JSON of a list of `schemas.Detections`."""
        # Not through `schemas`: the engine has checked the values, and validating hundreds of boxes again would cost
        # the event loop milliseconds.
        self._detections = to_json(
            [
                {
                    "model_name": output.model_name,
                    "boxes": output.boxes.tolist(),
                    "scores": output.scores.tolist(),
                    "labels": output.labels.tolist(),
                    "inference_time_ms": output.inference_time_ms,
                }
                for output in answer.outputs
            ]
        )

    def response(self, set_name: str, answer: Answer, stages: Stages, replica: str | None) -> Response:
        """The JSON of a `schemas.Inference`."""
        timings_ms = stages.milliseconds()
        head = {
            "implementation": self.implementation,
            "model_set": set_name,
            "total_inference_time_ms": timings_ms["forward"] + timings_ms["postprocess"],
            "timings_ms": timings_ms,
            "batch_size": answer.batch_size,
            **({"replica": replica} if replica else {}),
        }
        content = to_json(head)[:-1] + b',"detections":' + self._detections + b"}"
        return Response(content, media_type="application/json")
