#!/usr/bin/env python3
"""Of Grafana: `grafana server` with GET /api/health and /api/user, and `grafana cli … admin reset-admin-password`."""

import base64
import http.server
import os
import sys
from pathlib import Path

DATABASE = Path("/var/lib/grafana/grafana.db")


class Handler(http.server.BaseHTTPRequestHandler):
    """Everybody may ask for the health, only the admin for the user."""

    def do_GET(self) -> None:
        credentials = base64.b64encode(b"admin:" + DATABASE.read_bytes()).decode()
        allowed = self.path == "/api/health" or self.headers.get("Authorization") == f"Basic {credentials}"
        self.send_response(200 if allowed else 401)
        self.end_headers()


if sys.argv[1] == "cli":
    assert sys.argv[-3:] == ["admin", "reset-admin-password", "--password-from-stdin"], sys.argv
    DATABASE.write_bytes(sys.stdin.buffer.read())
else:
    if not DATABASE.exists():
        DATABASE.write_text(os.environ["GF_SECURITY_ADMIN_PASSWORD"])
    http.server.ThreadingHTTPServer(("", 3000), Handler).serve_forever()
