"""Users that ask on a connection each, one request after the other: `python closed_loop.py URL PHOTO USERS SECONDS`.

Prints a line of JSON: requests that were answered with 200 within the time, the others, and latencies in ms.
"""

import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import gevent
from gevent.pool import Group

from detbench.api.protocol import Message
from detbench.load.http_connection import Connection

_BOUNDARY = "----detbench"


def main(url: str, photo: str, users: str, seconds: str) -> None:
    """Ask for `seconds`, after one answer for each user that does not count."""
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    form = head.encode() + Path(photo).read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()
    address = urlsplit(url)
    connections = [Connection(f"{address.scheme}://{address.netloc}") for _ in range(int(users))]
    message = connections[0].post_message(Message(address.path, f"multipart/form-data; boundary={_BOUNDARY}", form))
    Group().map(lambda connection: connection.send(message), connections)
    ends_s = time.monotonic() + float(seconds)
    latencies_ms: list[float] = []
    failed: list[str] = []

    def ask(connection: Connection) -> None:
        while (began_s := time.monotonic()) < ends_s:
            answer = connection.send(message)
            if answer.answered_s > ends_s:
                return
            if answer.status_code != 200 or b'"detections"' not in answer.content:
                failed.append(answer.error or str(answer.status_code))
                gevent.sleep(0.01)
            else:
                latencies_ms.append(1e3 * (answer.answered_s - began_s))

    Group().map(ask, connections)
    sys.stdout.write(json.dumps({"failed": failed, "latencies_ms": latencies_ms}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
