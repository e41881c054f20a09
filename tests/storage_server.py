"""A loopback server around the fake storage alone, with faults on request, for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from saccade.cloud.fake.http import Request, Response, error_response
from saccade.cloud.fake.storage import FakeStorage

Fault = Callable[[Request], int | str | None]
"""What goes wrong with a request: an HTTP status, `drop` (no answer), `lose` (done, but the
answer is lost), or None."""


class StorageServer:
    """Serves a folder's buckets at `url` until the block ends."""

    def __init__(self, root: Path) -> None:
        self.storage = FakeStorage(root)
        self.fault: Fault = lambda request: None
        self.calls: list[Request] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                owner._answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> StorageServer:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        if handler.headers.get("Transfer-Encoding") == "chunked":
            body = _chunks(handler)
        if len(body) < length:  # the client died in the middle
            handler.close_connection = True
            return
        address = urlsplit(handler.path)
        query = parse_qs(address.query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.command, address.path, query, headers, body)
        self.calls.append(request)
        fault = self.fault(request)
        if fault in ("drop", "lose"):
            if fault == "lose":
                self.storage.handle(request)
            handler.close_connection = True
            return
        if isinstance(fault, int):
            _send(handler, error_response(fault, "scripted"))
            return
        _send(handler, self.storage.handle(request) or error_response(404, "no such path"))


def _chunks(handler: BaseHTTPRequestHandler) -> bytes:
    body = b""
    while size := int(handler.rfile.readline().strip() or b"0", 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


def _send(handler: BaseHTTPRequestHandler, response: Response) -> None:
    try:
        handler.send_response(response.status)
        for name, value in response.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(response.body)))
        handler.end_headers()
        handler.wfile.write(response.body)
    except OSError:  # the client is gone
        handler.close_connection = True
