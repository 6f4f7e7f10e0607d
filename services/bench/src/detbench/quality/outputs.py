"""Detections of one implementation for every image of a dataset: asking for them, and keeping them in a file."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from detbench.api.client import REFUSED_IMAGE, ServerClient
from detbench.api.schemas import Inference, ModelDetections
from detbench.atomic import write_atomically
from detbench.datasets import Photo
from detbench.errors import DatasetError, MalformedOutput, ServerError
from detbench.results.record import Record

T = TypeVar("T")


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

    answers = _all_asked(partial(ask, client, implementation, model_set), photos, on_image, concurrency)
    return [_output(photo, answer) for photo, answer in zip(photos, answers, strict=True)]


def collect_by_replica(
    client: ServerClient,
    implementation: str,
    model_set: str,
    photos: Sequence[Photo],
    on_image: Callable[[str], None] = lambda _: None,
    concurrency: int = 1,
) -> dict[str | None, list[ImageOutput]]:
    """Ask every replica of a cluster for the detections of every photo.

    Args:
        on_image, concurrency: as of `collect`; every replica has so many requests in flight.

    Returns:
        By replica what `collect` returns; by None, and nothing else, of a server that is no cluster.

    Raises:
        DatasetError, ServerError, MalformedOutput: as `collect`; or the replicas changed meanwhile.
    """
    replicas = client.health().replicas
    if replicas is None:
        return {None: collect(client, implementation, model_set, photos, on_image, concurrency)}
    names = sorted(each.replica for each in replicas)
    asked = partial(ask_replicas, client, implementation, model_set)
    answers = _all_asked(asked, photos, on_image, concurrency)
    for photo, answer in zip(photos, answers, strict=True):
        if sorted(answer) != names:
            raise ServerError(
                f"{photo.name} was answered by {', '.join(sorted(answer)) or 'none'}, and the replicas were "
                f"{', '.join(names)}; compare again when none comes or goes"
            )
    return {
        name: [_output(photo, answer[name]) for photo, answer in zip(photos, answers, strict=True)] for name in names
    }


def ask(client: ServerClient, implementation: str, model_set: str, photo: Photo) -> Inference:
    """Ask the server for the detections of one photo.

    Raises:
        DatasetError: the file cannot be read, or the server takes it for no image; the message names it.
        ServerError: the server refused or ended.
        MalformedOutput: a response that cannot be compared; the message names the photo.
    """
    return _answered(client.infer, implementation, model_set, photo)


def ask_replicas(client: ServerClient, implementation: str, model_set: str, photo: Photo) -> dict[str, Inference]:
    """Ask every replica of a cluster for the detections of one photo; by replica, raises as `ask`."""
    return _answered(client.infer_by_replicas, implementation, model_set, photo)


def _answered(call: Callable[[str, str, bytes, str], T], implementation: str, model_set: str, photo: Photo) -> T:
    """What a call of the client answers to one photo; raises as `ask`."""
    try:
        return call(implementation, model_set, photo.read(), photo.content_type)
    except MalformedOutput as error:
        raise MalformedOutput(f"{photo.name}: {error}") from error
    except ServerError as error:
        if error.status in REFUSED_IMAGE:
            raise DatasetError(f"{photo.path}: {error}; take it out of the folder") from error
        raise


def _all_asked(
    asked: Callable[[Photo], T], photos: Sequence[Photo], on_image: Callable[[str], None], concurrency: int
) -> list[T]:
    """What is answered to each photo, in their order."""
    with ThreadPoolExecutor(concurrency) as pool:
        answers = {pool.submit(asked, photo): photo for photo in photos}
        try:
            for answer in as_completed(answers):
                answer.result()
                on_image(answers[answer].name)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [answer.result() for answer in answers]


def _output(photo: Photo, answer: Inference) -> ImageOutput:
    return ImageOutput(
        image=photo.name, sha256=photo.sha256, batch_size=answer.batch_size, detections=answer.detections
    )


def write_outputs(path: Path, outputs: Sequence[ImageOutput]) -> None:
    """Write `outputs` as JSON, atomically; floats keep every digit."""
    write_atomically(path, _OUTPUTS.dump_json(list(outputs)))


def read_outputs(path: Path) -> list[ImageOutput]:
    """Read what `write_outputs` wrote."""
    return _OUTPUTS.validate_json(path.read_bytes())
