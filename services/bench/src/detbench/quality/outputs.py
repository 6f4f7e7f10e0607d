"""Detections of one implementation for every image of a dataset: asking for them, and keeping them in a file."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from pydantic import TypeAdapter

from detbench.atomic import write_atomically
from detbench.client import ModelDetections, ServerClient
from detbench.datasets import Photo
from detbench.errors import MalformedOutput
from detbench.results import Record


class ImageOutput(Record):
    """What every model of a set found in one image.

    `sha256` is that of the image's file, `batch_size` of how many images the batch was that it was answered in.
    """

    image: str
    sha256: str
    batch_size: int = 1
    detections: list[ModelDetections]


_OUTPUTS = TypeAdapter(list[ImageOutput])


def collect(
    client: ServerClient,
    implementation: str,
    model_set: str,
    photos: Sequence[Photo],
    on_image: Callable[[str], None] = lambda _: None,
    concurrency: int = 1,
) -> list[ImageOutput]:
    """Ask the server for the detections of every photo.

    Args:
        on_image: called with the name of each photo once it is answered, from the caller's thread.
        concurrency: requests in flight, so that a server that batches makes batches of up to as many.

    Returns:
        One output per photo, in their order.

    Raises:
        ServerError: the server refused or ended.
        MalformedOutput: a response that cannot be compared; the message names the photo.
            After either no further photo is asked for, and what is in flight is awaited.
    """

    def ask(photo: Photo) -> ImageOutput:
        try:
            answer = client.infer(implementation, model_set, photo.path.read_bytes(), photo.content_type)
        except MalformedOutput as error:
            raise MalformedOutput(f"{photo.name}: {error}") from error
        return ImageOutput(
            image=photo.name, sha256=photo.sha256, batch_size=answer.batch_size, detections=answer.detections
        )

    with ThreadPoolExecutor(concurrency) as pool:
        answers = [pool.submit(ask, photo) for photo in photos]
        try:
            for answer in as_completed(answers):
                on_image(answer.result().image)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [answer.result() for answer in answers]


def write_outputs(path: Path, outputs: Sequence[ImageOutput]) -> None:
    """Write `outputs` as JSON, atomically; floats keep every digit."""
    write_atomically(path, _OUTPUTS.dump_json(list(outputs)))


def read_outputs(path: Path) -> list[ImageOutput]:
    """Read what `write_outputs` wrote."""
    return _OUTPUTS.validate_json(path.read_bytes())
