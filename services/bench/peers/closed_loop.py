"""Users that ask on a connection each, one request after the other, as the JSON of `Asked` on standard input says.

Prints a line of JSON: latencies in ms of the requests that were answered in time, and the reasons of the others. The
different answers are written for `detbench.load.answers.read_answers`.
"""

import itertools
import sys
import time
from pathlib import Path

import gevent
from gevent.pool import Group
from pydantic import BaseModel

from detbench.api.protocol import Message, Native, Protocol
from detbench.load.answers import DistinctAnswers
from detbench.load.http_connection import Connection

_BOUNDARY = "----detbench"


class Photo(BaseModel):
    """One photo that is sent; `sha256` is that of its file."""

    path: Path
    sha256: str


class Asked(BaseModel):
    """One load: `users` send the photos to `model` of the server at `host` for `seconds`; `answers` is a folder."""

    host: str
    protocol: Protocol
    model: str
    model_set: str
    photos: list[Photo]
    users: int
    seconds: float
    answers: Path | None = None


class Answered(BaseModel):
    """What came back in `window_s`, which ends with the last answer."""

    window_s: float
    latencies_ms: list[float]
    failed: list[str]


def message(asked: Asked, photo: Photo) -> Message:
    """The request for one photo; servers of others take a form where they have no protocol of their own."""
    sent = asked.protocol.message(asked.model, asked.model_set, photo.path.read_bytes(), "image/jpeg")
    if not isinstance(asked.protocol, Native):
        return sent
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    form = (head.encode(), *sent.content, f"\r\n--{_BOUNDARY}--\r\n".encode())
    return Message(sent.path, f"multipart/form-data; boundary={_BOUNDARY}", form)


def main(asked: Asked) -> Answered:
    """Ask for `seconds`, after one answer for each user that does not count."""
    connections = [Connection(asked.host) for _ in range(asked.users)]
    messages = [connections[0].post_message(message(asked, photo)) for photo in asked.photos]
    Group().map(lambda connection: connection.send(messages[0]), connections)
    start_s = last_s = time.monotonic()
    ends_s = start_s + asked.seconds
    latencies_ms: list[float] = []
    failed: list[str] = []
    received: list[tuple[int, bytes]] = []

    def ask(user: tuple[int, Connection]) -> None:
        nonlocal last_s
        start, connection = user
        for number in itertools.count(start):
            place = number % len(messages)
            began_s = time.monotonic()
            if began_s >= ends_s:
                return
            answer = connection.send(messages[place])
            if answer.answered_s > ends_s:
                return
            if answer.status_code != 200:
                failed.append(answer.error or str(answer.status_code))
                gevent.sleep(0.01)
            else:
                last_s = max(last_s, answer.answered_s)
                latencies_ms.append(1e3 * (answer.answered_s - began_s))
                received.append((place, answer.content))

    Group().map(ask, enumerate(connections))
    answers = DistinctAnswers()
    for place, content in received:  # not meanwhile: the servers need the processor
        photo = asked.photos[place]
        answers.add(photo.sha256, asked.protocol.inference(content, photo.path.read_bytes()))
    if asked.answers is not None:
        answers.write(asked.answers)
    return Answered(window_s=last_s - start_s, latencies_ms=latencies_ms, failed=failed)


if __name__ == "__main__":
    sys.stdout.write(main(Asked.model_validate_json(sys.stdin.read())).model_dump_json() + "\n")
