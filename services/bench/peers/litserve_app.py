"""The work in LitServe: `WORK=effdet python litserve_app.py PORT WORKERS`."""

import sys
from typing import Any

import litserve
from fastapi import Request
from work import ANSWER, PATH, do_work


class Invalid(litserve.LitAPI):
    """Decodes and prepares in a worker process, one request at a time."""

    def setup(self, device: str) -> None:
        """Nothing: there is no model."""

    def decode_request(self, request: Request) -> bytes:
        """The bytes of the form's file."""
        data: bytes = request["file"].file.read()
        return data

    def predict(self, data: bytes) -> dict[str, Any]:
        """See `work`."""
        do_work(data)
        return ANSWER

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return output


if __name__ == "__main__":
    port, workers = (int(argument) for argument in sys.argv[1:])
    server = litserve.LitServer(Invalid(api_path=PATH), accelerator="cpu", workers_per_device=workers, fast_queue=True)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning", access_log=False)
