"""The work in KServe's model server: `MODEL=invalid WORK=effdet WORKERS=2 python kserve_app.py PORT`.

Pictures come in base64: its binary tensors have to be text.
"""

import base64
import os
import sys

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from work import MODEL, Detector, as_tensors

from detserver.http.oip.tensors import OUTPUTS

# Each worker imports this file: it is handed the model, which cannot hold what is no data.
_DETECTOR = Detector()


class Detect(Model):
    """Detects in a worker process."""

    def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
        """See `work`."""
        found = as_tensors(_DETECTOR(base64.b64decode(payload.inputs[0].data[0])))
        outputs = []
        for tensor in OUTPUTS:
            values = found[tensor.name]
            outputs.append(InferOutput(tensor.name, list(values.shape), tensor.datatype))
            outputs[-1].set_data_from_numpy(values, binary_data=False)
        return InferResponse(payload.id or "", self.name, outputs)


if __name__ == "__main__":
    model = Detect(MODEL)
    model.ready = True
    ModelServer(
        http_port=int(sys.argv[1]), workers=int(os.environ["WORKERS"]), enable_grpc=False, enable_docs_url=False,
        access_log_format=None,
    ).start([model])  # fmt: skip
