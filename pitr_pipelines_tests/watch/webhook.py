"""A webhook on loopback that keeps what it is sent, as apprise's json:// sends it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "s3cr3t-t0ken"


@dataclass
class Webhook:
    """What was received, oldest first. `status` is what it answers; anything but 200 is a refusal."""

    port: int = 0
    status: int = 200
    received: list[dict[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.port}/{TOKEN}"

    def take(self) -> list[dict[str, str]]:
        """Return what has come since the last time."""
        taken, self.received[:] = list(self.received), []
        return taken

    def titles(self) -> list[str]:
        """Return the titles of what has come since the last time, without the name of this machine."""
        return [one["title"].partition(": ")[2] for one in self.take()]


@contextmanager
def running_webhook() -> Iterator[Webhook]:
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if hook.status == 200:
                hook.received.append(json.loads(body))
            self.send_response(hook.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
