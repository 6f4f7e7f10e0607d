"""Detections of one implementation for every image of a dataset: asking for them, and keeping them in a file."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from detbench.atomic import write_atomically
from detbench.client import ModelDetections, ServerClient
from detbench.datasets import Photo
from detbench.errors import MalformedOutput
from detbench.results import Record


class ImageOutput(Record):
    """What every model of a set found in one image; `sha256` is that of the image's file."""

    image: str
    sha256: str
    detections: list[ModelDetections]


_OUTPUTS = TypeAdapter(list[ImageOutput])


def collect(
    client: ServerClient,
    implementation: str,
    model_set: str,
    photos: Sequence[Photo],
    on_image: Callable[[str], None] = lambda _: None,
) -> list[ImageOutput]:
    """Ask the server for the detections of every photo, one request at a time.

    Args:
        on_image: called with the name of each photo once it is answered.

    Raises:
        ServerError: the server refused or ended.
        MalformedOutput: a response that cannot be compared; the message names the photo.
    """
    outputs = []
    for photo in photos:
        try:
            answer = client.infer(implementation, model_set, photo.path.read_bytes(), photo.content_type)
        except MalformedOutput as error:
            raise MalformedOutput(f"{photo.name}: {error}") from error
        outputs.append(ImageOutput(image=photo.name, sha256=photo.sha256, detections=answer.detections))
        on_image(photo.name)
    return outputs


def write_outputs(path: Path, outputs: Sequence[ImageOutput]) -> None:
    """Write `outputs` as JSON, atomically; floats keep every digit."""
    write_atomically(path, _OUTPUTS.dump_json(list(outputs)))


def read_outputs(path: Path) -> list[ImageOutput]:
    """Read what `write_outputs` wrote."""
    return _OUTPUTS.validate_json(path.read_bytes())
