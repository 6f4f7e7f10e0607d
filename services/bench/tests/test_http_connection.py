"""The connection of a sender: what goes over the wire, and what becomes of servers that close, cut and refuse."""

import itertools
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from detbench.api.protocol import Message
from detbench.load import http_connection
from detbench.load.http_connection import Answer, Connection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class WireServer:
    """Answers each connection by `script`, which is given its socket and its number; a context manager.

    `received` has the bytes of every request that the script read.
    """

    def __init__(self, script: Callable[["WireServer", socket.socket, int], None]) -> None:
        self._script = script
        self.received: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> "WireServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def read(self, client: socket.socket) -> bytes:
        """One request, as far as its Content-Length."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._some(client)
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")]
        while len(body) < sum(lengths):
            body += self._some(client)
        self.received.append(head + b"\r\n\r\n" + body)
        return body

    @staticmethod
    def _some(client: socket.socket) -> bytes:
        data = client.recv(1 << 16)
        if not data:
            raise ConnectionError
        return data

    def _serve(self) -> None:
        for number in itertools.count():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client, number), daemon=True).start()

    def _talk(self, client: socket.socket, number: int) -> None:
        with client:
            try:
                self._script(self, client, number)
            except (ConnectionError, OSError):
                return


def keeps_alive(server: WireServer, client: socket.socket, number: int) -> None:
    """Answer every request of a connection, with the connection's number."""
    while True:
        server.read(client)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)


def connect(port: int, before: str = "http://", after: str = "") -> Connection:
    return Connection(f"{before}127.0.0.1:{port}{after}")


def get(connection: Connection, path: str) -> Answer:
    """The answer to a GET."""
    return connection.send(connection.get_message(path))


def post(connection: Connection, path: str, content: bytes) -> Answer:
    """The answer to a POST of an image."""
    return connection.send(connection.post_message(Message(path, "image/png", (content,))))


def test_requests_go_over_one_connection():
    with WireServer(keeps_alive) as server:
        connection = connect(server.port)
        before_s = time.monotonic()
        answers = [post(connection, "/infer/x?model_set=y", b"12345"), get(connection, "/health")]
        assert [(each.status_code, each.content) for each in answers] == [(200, b"0"), (200, b"0")]
        assert before_s < answers[0].answered_s < answers[1].answered_s < time.monotonic()
    host = f"Host: 127.0.0.1:{server.port}"
    headers = f"{host}\r\nUser-Agent: detbench\r\nContent-Type: image/png\r\nContent-Length: 5\r\nX-Deadline-Ms: 600000"
    assert server.received[0].decode() == f"POST /infer/x?model_set=y HTTP/1.1\r\n{headers}\r\n\r\n12345"
    assert server.received[1].decode() == f"GET /health HTTP/1.1\r\n{host}\r\nUser-Agent: detbench\r\n\r\n"


def test_prefix_and_password_of_the_host_are_sent():
    with WireServer(keeps_alive) as server:
        get(connect(server.port, "http://me:p%40ss@", "/behind/a/prefix/"), "/health")
    head = server.received[0].decode()
    assert head.startswith(f"GET /behind/a/prefix/health HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n")
    assert "Authorization: Basic bWU6cEBzcw==\r\n" in head  # me:p@ss


def test_a_closed_connection_is_opened_again():
    def once(server: WireServer, client: socket.socket, number: int) -> None:
        server.read(client)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)

    with WireServer(once) as server:
        connection = connect(server.port)
        found = []
        for _ in range(3):
            found.append(get(connection, "/").content)
            time.sleep(0.05)  # until the server's end of the connection has arrived
    assert found == [b"0", b"1", b"2"]


def test_what_comes_in_pieces_is_put_together_and_timed_at_its_last():
    def slowly(server: WireServer, client: socket.socket, number: int) -> None:
        server.read(client)
        head = b"HTTP/1.1 200 OK\r\nTransfer-", b"Encoding: chunked\r\n\r\n3\r\nab"
        for piece in (*head, b"c\r\n2\r\nde\r\n", b"0\r\n\r\n"):
            client.sendall(piece)
            time.sleep(0.05)
        server.read(client)

    with WireServer(slowly) as server:
        began_s = time.monotonic()
        answer = get(connect(server.port), "/")
    assert (answer.status_code, answer.content) == (200, b"abcde")
    assert 0.15 <= answer.answered_s - began_s < 1


def test_an_answer_that_ends_with_the_connection_is_whole():
    def without_length(server: WireServer, client: socket.socket, number: int) -> None:
        server.read(client)
        client.sendall(b"HTTP/1.0 200 OK\r\n\r\nall of it")

    with WireServer(without_length) as server:
        answer = get(connect(server.port), "/")
    assert (answer.status_code, answer.content) == (200, b"all of it")


@pytest.mark.parametrize(
    ("sent", "status", "error"),
    [
        (b"", 0, "no answer: connection closed"),
        (OK[:20], 0, "no answer: no HTTP, or cut"),
        (OK[:-1], 200, "truncated answer"),
        (b"SSH-2.0-OpenSSH\r\n", 0, "no answer: no HTTP, or cut"),
    ],
    ids=["nothing", "head", "body", "no HTTP"],
)
def test_a_cut_answer_is_a_failure_and_the_next_request_is_answered(sent, status, error):
    def first_cut(server: WireServer, client: socket.socket, number: int) -> None:
        server.read(client)
        client.sendall(OK if number else sent)

    with WireServer(first_cut) as server:
        connection = connect(server.port)
        cut, whole = get(connection, "/"), get(connection, "/")
        assert (cut.status_code, cut.content, cut.error) == (status, b"", error)
        assert (whole.status_code, whole.content, whole.error) == (200, b"ok", "")
        assert len(server.received) == 2  # nothing was sent twice


def test_a_refusal_before_everything_was_read_is_seen():
    def refuses(server: WireServer, client: socket.socket, number: int) -> None:
        client.recv(100)
        client.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.2)

    with WireServer(refuses) as server:
        answer = post(connect(server.port), "/", bytes(50_000_000))
    assert (answer.status_code, answer.content) == (413, b"big")


def test_no_server_and_no_answer_in_time_are_none(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert get(connect(port), "/").error == "no answer: connection refused"

    monkeypatch.setattr(http_connection, "_ANSWER_TIMEOUT_S", 0.1)
    with WireServer(lambda server, client, number: time.sleep(1)) as server:
        answer = get(connect(server.port), "/")
    assert (answer.status_code, answer.error) == (0, "no answer: timed out")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, which makes a certificate")
def test_https_is_checked_against_the_trusted_certificates(tmp_path: Path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*request, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def encrypted(server: WireServer, client: socket.socket, number: int) -> None:
        keeps_alive(server, context.wrap_socket(client, server_side=True), number)

    with WireServer(encrypted) as server:
        assert "certificate verify failed" in get(connect(server.port, "https://"), "/").error
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        answer = get(connect(server.port, "https://"), "/")
    assert answer.status_code == 200
