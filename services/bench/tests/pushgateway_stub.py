"""A thin Pushgateway: what PUT and POST do to a group, and the page that Prometheus reads."""

import http.server
import threading
from typing import Self

from prometheus_client.parser import text_string_to_metric_families


class StubPushgateway:
    """A context manager; `groups` are the series of each group by its path: name and labels to value."""

    def __enter__(self) -> Self:
        self.groups: dict[str, dict[str, str]] = {}
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self.take(replaces_all=True)

            def do_POST(self) -> None:
                self.take(replaces_all=False)

            def take(self, *, replaces_all: bool) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                new = {family.name: body for family in text_string_to_metric_families(body)}
                for name in new:
                    lines = [line for line in body.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
                    new[name] = "\n".join(lines)
                stub.groups[self.path] = new if replaces_all else {**stub.groups.get(self.path, {}), **new}
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                page = "".join(f"{text}\n" for group in stub.groups.values() for text in group.values()).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
