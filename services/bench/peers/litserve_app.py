"""The work in LitServe: `MODEL=invalid WORK=effdet WORKERS=2 python litserve_app.py PORT`."""

import os
import sys
from typing import Any

import litserve
from fastapi import Request
from work import PATH, Detector, as_json


class Detect(litserve.LitAPI):
    """Detects in a worker process, one request at a time."""

    def setup(self, device: str) -> None:
        """Load the models of this worker."""
        self.detector = Detector()

    def decode_request(self, request: Request) -> bytes:
        """The bytes of the form's file."""
        data: bytes = request["file"].file.read()
        return data

    def predict(self, data: bytes) -> dict[str, Any]:
        """See `work`."""
        return as_json(self.detector(data))

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return output


if __name__ == "__main__":
    workers = int(os.environ["WORKERS"])
    server = litserve.LitServer(
        Detect(api_path=PATH), accelerator="cpu", workers_per_device=workers, fast_queue=True, timeout=600
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning", access_log=False
    )
