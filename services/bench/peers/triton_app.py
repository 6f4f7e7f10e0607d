"""The work in Triton, by its Python backend: `MODEL=invalid WORK=effdet WORKERS=2 python triton_app.py PORT`.

Triton hands a request to a thread of this process for each of `WORKERS`, through shared memory.
"""

import os
import socket
import sys

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.proxy.types import Request
from pytriton.triton import Triton, TritonConfig
from work import MODEL, Detector, as_tensors

from detserver.http.oip.tensors import IMAGE, OUTPUTS

_TYPES = {"FP32": np.float32, "INT64": np.int64, "INT32": np.int32}


class Detect:
    """Detects in one thread."""

    def __init__(self) -> None:
        self.detector = Detector()

    def __call__(self, requests: list[Request]) -> list[dict[str, np.ndarray]]:
        """See `work`."""
        return [as_tensors(self.detector(request[IMAGE.name].item())) for request in requests]


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(sys.argv[1]),
        grpc_address="127.0.0.1",
        grpc_port=free_port(),
        metrics_address="127.0.0.1",
        metrics_port=free_port(),
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=MODEL,
            infer_func=[Detect() for _ in range(int(os.environ["WORKERS"]))],
            inputs=[Tensor(name=IMAGE.name, dtype=bytes, shape=IMAGE.shape)],
            outputs=[Tensor(name=each.name, dtype=_TYPES[each.datatype], shape=each.shape) for each in OUTPUTS],
            config=ModelConfig(batching=False),
        )
        triton.serve()
