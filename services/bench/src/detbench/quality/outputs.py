"""Detections of one implementation for every image of a dataset: asking for them, and keeping them in a file."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from pydantic import TypeAdapter

from detbench.api.client import REFUSED_IMAGE, ServerClient
from detbench.api.schemas import Inference, ModelDetections
from detbench.atomic import write_atomically
from detbench.datasets import Photo
from detbench.errors import DatasetError, MalformedOutput, ServerError
from detbench.results.record import Record


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
        DatasetError, ServerError, MalformedOutput: see `ask`. After one no further photo is asked for, and what is in
            flight is awaited.
    """

    def output(photo: Photo) -> ImageOutput:
        answer = ask(client, implementation, model_set, photo)
        return ImageOutput(
            image=photo.name, sha256=photo.sha256, batch_size=answer.batch_size, detections=answer.detections
        )

    with ThreadPoolExecutor(concurrency) as pool:
        answers = [pool.submit(output, photo) for photo in photos]
        try:
            for answer in as_completed(answers):
                on_image(answer.result().image)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [answer.result() for answer in answers]


def ask(client: ServerClient, implementation: str, model_set: str, photo: Photo) -> Inference:
    """Ask the server for the detections of one photo.

    Raises:
        DatasetError: the file cannot be read, or the server takes it for no image; the message names it.
        ServerError: the server refused or ended.
        MalformedOutput: a response that cannot be compared; the message names the photo.
    """
    try:
        return client.infer(implementation, model_set, photo.read(), photo.content_type)
    except MalformedOutput as error:
        raise MalformedOutput(f"{photo.name}: {error}") from error
    except ServerError as error:
        if error.status in REFUSED_IMAGE:
            raise DatasetError(f"{photo.path}: {error}; take it out of the folder") from error
        raise


def write_outputs(path: Path, outputs: Sequence[ImageOutput]) -> None:
    """Write `outputs` as JSON, atomically; floats keep every digit."""
    write_atomically(path, _OUTPUTS.dump_json(list(outputs)))


def read_outputs(path: Path) -> list[ImageOutput]:
    """Read what `write_outputs` wrote."""
    return _OUTPUTS.validate_json(path.read_bytes())
