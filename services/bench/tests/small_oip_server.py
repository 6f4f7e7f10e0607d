"""A small server of the Open Inference Protocol that is not a detserver: one model, `finder`, as others may serve one.

It takes base64 alone, gives boxes as shares of the picture in the order y, x, y, x, padded to ten rows with a count,
and calls the first class 0. With `statistics` it counts as Triton does.
"""

import base64
import contextlib
import http.server
import io
import itertools
import json
import threading
from typing import Any, Self

from PIL import Image

ROWS = 10


class SmallOipServer:
    """Serves one box for each of `boxes` (pixels, x1 y1 x2 y2) of class 1 with a score of 0.9; a context manager."""

    def __init__(self, boxes: list[list[float]], statistics: bool = True) -> None:
        self.boxes = boxes
        self.statistics = statistics
        self.calls: list[str] = []
        self.answered = 0

    def __enter__(self) -> Self:
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                found = {
                    "/v2": {"name": "small", "version": "7", "extensions": []},
                    "/v2/health/live": b"",
                    "/v2/health/ready": b"",
                    "/v2/models/finder": {"name": "finder", "platform": "by hand", "inputs": [], "outputs": []},
                    "/v2/models/finder/ready": b"",
                    "/v2/models/finder/stats": stub.stats() if stub.statistics else None,
                }.get(self.path)
                self.reply(*((404, {"error": f"nothing at {self.path}"}) if found is None else (200, found)))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                stub.calls.append(self.path)
                if self.path != "/v2/models/finder/infer":
                    self.reply(404, {"error": f"nothing at {self.path}"})
                    return
                self.reply(200, stub.answer(json.loads(body)))

            def reply(self, status: int, answer: Any) -> None:
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()  # Triton says yes so
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The tensors that are found in a request's picture."""
        (tensor,) = request["inputs"]
        assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("photo", "BYTES", [1, 1])
        with Image.open(io.BytesIO(base64.b64decode(tensor["data"][0], validate=True))) as picture:
            width, height = picture.size
        boxes = [[y1 / height, x1 / width, y2 / height, x2 / width] for x1, y1, x2, y2 in self.boxes]
        padding = ROWS - len(boxes)
        self.answered += 1
        tensors = {
            "detection_boxes": ("FP32", [1, ROWS, 4], [*itertools.chain(*boxes), *[0.0] * 4 * padding]),
            "detection_scores": ("FP32", [1, ROWS], [*[0.9] * len(boxes), *[0.0] * padding]),
            "detection_classes": ("INT64", [1, ROWS], [0] * ROWS),
            "num_detections": ("INT32", [1], [len(boxes)]),
        }
        return {
            "model_name": "finder",
            "model_version": "7",
            "outputs": [
                {"name": name, "datatype": datatype, "shape": shape, "data": data}
                for name, (datatype, shape, data) in tensors.items()
            ],
        }

    def stats(self) -> dict[str, Any]:
        """Triton's statistics: 1 ms of queue and 4 ms of the model for each request, two of which are one batch."""
        milliseconds = {"success": 9, "queue": 1, "compute_input": 2, "compute_infer": 4, "compute_output": 1}
        figures = {
            part: {"count": self.answered, "ns": each * self.answered * 10**6} for part, each in milliseconds.items()
        }
        row = {"name": "finder", "version": "7", "inference_stats": figures}
        return {"model_stats": [row | {"inference_count": self.answered, "execution_count": self.answered // 2}]}


TENSORS = """
input = "photo"
shape = [1, 1]
encoding = "json"
exact = true

[[outputs]]
boxes = "detection_boxes"
scores = "detection_scores"
labels = "detection_classes"
count = "num_detections"
order = "yxyx"
relative = true
first_label = 0
"""
