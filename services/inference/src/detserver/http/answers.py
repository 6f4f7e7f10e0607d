"""The bytes of an answer to `POST /infer`."""

from pydantic_core import to_json

from detserver.engine.work import Answer
from detserver.http.stages import Stages


def detections(answer: Answer) -> bytes:
    """The JSON of a list of `schemas.Detections`."""
    # Not through `schemas`: the engine has checked the values, and validating hundreds of boxes again would cost the
    # event loop milliseconds.
    return to_json(
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


def inference(name: str, set_name: str, answer: Answer, found: bytes, stages: Stages) -> bytes:
    """The JSON of a `schemas.Inference` with the detections `found`."""
    # The timings hold how long the detections took to serialise, so these are made before.
    timings_ms = {stage: seconds * 1e3 for stage, seconds in stages.seconds.items()}
    head = {
        "implementation": name,
        "model_set": set_name,
        "total_inference_time_ms": timings_ms["forward"] + timings_ms["postprocess"],
        "timings_ms": timings_ms,
        "batch_size": answer.batch_size,
    }
    return to_json(head)[:-1] + b',"detections":' + found + b"}"
