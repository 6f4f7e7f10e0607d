"""A server that is told to end answers what it has accepted, and ends."""

import http.client
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from running_server import PROCESS, RunningServer
from starlette.testclient import TestClient

from detserver.http.routes import create_app
from detserver.settings import Settings

USERS = 8
PNG = {"Content-Type": "image/png"}


class User(threading.Thread):
    """Asks on one connection for as long as it can connect; `statuses` of its answers, `broken` what else came."""

    def __init__(self, server: RunningServer, implementation: str, data: bytes, requests: int | None = None) -> None:
        super().__init__()
        self.statuses: list[int] = []
        self.broken: list[Exception] = []
        self._address = urlsplit(server.url).netloc
        self._path = f"/infer/{implementation}"
        self._data = data
        self._requests = requests

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=120)
        while self._requests is None or len(self.statuses) < self._requests:
            if connection.sock is None:
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    return
            try:
                connection.request("POST", self._path, self._data, PNG)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(error)
                return
            self.statuses.append(answer.status)


def ended(server: RunningServer) -> int:
    """Tell the server to end and wait for it; its exit status."""
    server.process.send_signal(signal.SIGTERM)
    return server.process.wait(120)


@pytest.mark.slow
def test_sigterm_in_the_middle_of_a_load_breaks_no_request(start_server, photos: list[Path]):
    server = start_server(program=PROCESS, preload="invalid,baseline")
    data = photos[0].read_bytes()
    # The slow ones still wait in the queue when the signal comes.
    slow = [User(server, "baseline", data, requests=1) for _ in range(3)]
    quick = [User(server, "invalid", data) for _ in range(USERS)]
    for user in (*quick, *slow):
        user.start()
    while not all(user.statuses for user in quick):
        time.sleep(0.05)
    assert ended(server) == 0
    for user in (*quick, *slow):
        user.join()
    assert [user.broken for user in (*quick, *slow)] == [[]] * (USERS + 3)
    assert {status for user in (*quick, *slow) for status in user.statuses} == {200}
    assert [len(user.statuses) for user in slow] == [1] * 3
    assert "Traceback" not in server.log


@pytest.mark.slow  # of models that take long
def test_what_is_not_done_within_the_limit_is_told_so_and_counted(start_server, photos: list[Path]):
    server = start_server(program=PROCESS, default_model_set="mixed", preload="baseline", drain_limit_s="1")
    data = photos[0].read_bytes()
    answers: list[httpx.Response] = []
    users = [
        threading.Thread(target=lambda: answers.append(server.infer("baseline", content=data, headers=PNG)))
        for _ in range(12)
    ]
    for user in users:
        user.start()
    while httpx.get(f"{server.url}/metrics").text.count("detserver_queue_depth 10.0") == 0:
        time.sleep(0.05)
    assert ended(server) == 0
    for user in users:
        user.join()
    lost = [answer for answer in answers if answer.status_code == 503]
    assert lost
    assert all(answer.headers["Retry-After"] and answer.json()["detail"] for answer in lost)
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert re.search(rf"Cancel {len(lost)} running task", server.log)
    assert "Traceback" not in server.log


@pytest.mark.slow
def test_sigterm_while_it_loads_ends_it_promptly(start_server, tmp_path: Path):
    server = start_server(program=PROCESS, wait=False, preload="baseline", data_dir=str(tmp_path / "empty"))
    while "calibrating" not in server.log:
        time.sleep(0.05)
    assert ended(server) == 0
    assert "Traceback" not in server.log
    assert "random weights" not in server.log.split("calibrating random weights")[-1]


def test_sigterm_while_it_imports_ends_it(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-m", "detserver"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{process.pid}/status")
    while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) >> (signal.SIGTERM - 1) & 1:
        time.sleep(0.01)
    process.terminate()
    _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (0, "")


def test_every_answer_of_a_server_that_ends_is_its_connections_last(tmp_path: Path):
    app = create_app(Settings(preload=[], data_dir=tmp_path, weights_download=False))
    with TestClient(app) as client:
        assert "connection" not in client.get("/health").headers
        app.state.server.end()
        answer = client.get("/health")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["detail"]) == (503, "the server is about to end")


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [
        b"POST /infer/invalid HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nhalf",
        b"GET /he",
    ],
)
def test_a_client_that_sends_half_a_request_keeps_no_server_alive(start_server, sent: bytes):
    server = start_server(program=PROCESS, preload="invalid", drain_limit_s="1")
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.netloc)
    connection.connect()
    connection.sock.sendall(sent)
    time.sleep(0.3)
    assert ended(server) == 0
    assert "Traceback" not in server.log
    connection.close()
