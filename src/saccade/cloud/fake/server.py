"""The HTTP server of the fake cloud: sockets in front, services behind, faults in between.

Requests from this machine flow in; each passes the watchers, the faults, the check that its API is
enabled, then its service. Anything else on the network is refused, as is a browser page of another
origin. Closing the server ends every container. Starting it in the background is `background.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from saccade.cloud.fake import (
    admin,
    billing,
    builds,
    compute,
    custom_jobs,
    faults,
    iam,
    logging_api,
    quotas,
    registry,
    secrets,
    services,
)
from saccade.cloud.fake.http import (
    GoogleError,
    Request,
    Response,
    html_error,
)
from saccade.cloud.fake.scenario import Fault, Scenario
from saccade.cloud.fake.storage import FakeStorage
from saccade.cloud.fake.world import build_world, mount_operations
from saccade.config.errors import OutsideError

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
LOCAL_NAMES = {"127.0.0.1", "localhost", "[::1]", "::1"}
MODULES = (
    custom_jobs,
    builds,
    registry,
    secrets,
    iam,
    services,
    quotas,
    billing,
    compute,
    logging_api,
)


class FakeCloud:
    """A running fake cloud; a context manager that ends everything it started."""

    def __init__(self, state: Path, *, port: int, scenario: Scenario | None) -> None:
        self.state = state
        self._lock = _own(state)
        try:
            self.world = build_world(state, scenario=scenario or Scenario())
            self.storage = FakeStorage(state / "storage")
            self.world.handle = self._dispatch
            self._server = _Server((LOOPBACK, port), self)
        except OSError as error:
            self._lock.close()
            raise OutsideError(
                f"the fake cloud cannot use port {port}: {error}"
                "\n  fix: saccade cloud fake --port 0"
            ) from error
        self.port = int(self._server.server_address[1])
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.world.url = self.url
        self.last_request = time.time()
        self.jobs = custom_jobs.JobTable(self.world)
        for module in MODULES:
            module.mount(self.world.router, self.world)
        custom_jobs.mount_jobs(self.world.router, self.world, self.jobs)
        mount_operations(self.world.router, self.world)
        admin.mount(self.world.router, self)
        self.jobs.resume()
        builds.resume(self.world)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="fake-cloud", daemon=True
        )
        self._thread.start()
        _write_server_file(state, port=self.port)

    def __enter__(self) -> FakeCloud:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all containers and the server."""
        if self.world.closing.is_set():
            return
        self.world.closing.set()
        self._server.shutdown()
        self.jobs.close()
        self._server.server_close()
        self._thread.join(5)
        (self.state / "server.json").unlink(missing_ok=True)
        self._lock.close()

    def add_fault(self, match: str, **keys: Any) -> None:
        """Set a fault; the keys are those of `Fault`."""
        self.world.faults.add(Fault(match=match, **keys))

    def calls(self, match: str = "", *, since: int = 0) -> list[dict[str, Any]]:
        """The calls that came in, oldest first."""
        return self.world.faults.calls(match=match, since=since)

    def preempt(self, job: str, *, retry: bool = False, grace: float | None = None) -> None:
        """Take a running job's machines away."""
        self.jobs.preempt(job, retry=retry, grace=grace)

    def register_image(self, uri: str) -> str:
        """Put an image into its Artifact Registry repository; returns its digest."""
        return registry.register(self.world, uri)

    def set_scenario(self, scenario: Scenario) -> None:
        """Behave otherwise from now on; faults already set stay."""
        self.world.scenario = scenario
        for fault in scenario.faults:
            self.world.faults.add(fault)

    def reset(self) -> None:
        """End all jobs and forget everything, faults and recorded calls included."""
        self.jobs.stop_all()
        self.world.store.clear()
        self.world.logs.clear()
        self.world.faults.clear()
        self.world.faults.clear_calls()
        self.world.held_quota.clear()
        self.jobs.forget()
        self._reset_storage()

    def _reset_storage(self) -> None:
        with self.storage.lock:
            shutil.rmtree(self.state / "storage", ignore_errors=True)
            self.storage = FakeStorage(self.state / "storage")

    def handle(self, request: Request) -> Response:
        """Answer one request from outside; raises `faults.Dropped` to break the connection."""
        self.last_request = time.time()
        if request.path.startswith("/fake/"):
            return self._dispatch(request) or html_error(404)
        request = replace(request, about=self.storage.sessions.object_of(request))
        for watcher in list(self.world.watchers):
            watcher(request)
        hit = self.world.faults.strike(request)
        status: int | str = "drop"
        try:
            response = faults.delay_or_refuse(hit, when="before")
            if response is None:
                response = self._dispatch(request) or html_error(404)
                response = faults.delay_or_refuse(hit, when="after") or response
            status = response.status
            return response
        finally:
            self.world.faults.record(request, status, hit)

    def _dispatch(self, request: Request) -> Response | None:
        found = self.world.router.find(request)
        if found is None:
            return self.storage.handle(request)
        route, holes = found
        try:
            if "project" in holes:
                holes["project"] = self.world.project(holes["project"])
                if route.service is not None:
                    services.require(self.world, holes["project"], route.service)
            return route.handler(request, **holes)
        except GoogleError as error:
            return error.response()
        except Exception:
            logger.exception("%s %s", request.method, request.path)
            return GoogleError(500, "Internal error encountered.").response()


def serve(state: Path, *, port: int = 0, scenario: Scenario | None = None) -> FakeCloud:
    """Start a fake cloud in this process, on this machine's loopback only."""
    return FakeCloud(state, port=port, scenario=scenario)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], cloud: FakeCloud) -> None:
        self.cloud = cloud
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""
        logger.debug("connection from %s broke", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "saccade-fake-cloud"
    disable_nagle_algorithm = True

    @property
    def _cloud(self) -> FakeCloud:
        assert isinstance(self.server, _Server)
        return self.server.cloud

    def _answer(self) -> None:
        request = self._read()
        if request is None:
            return
        try:
            response = self._cloud.handle(request)
        except faults.Dropped:
            self._break()
            return
        except Exception:
            logger.exception("%s %s", request.method, request.path)
            response = GoogleError(500, "Internal error encountered.").response()
        self._send(response)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _answer

    def _read(self) -> Request | None:
        """The request with its body, or None after refusing a stranger."""
        body = self._body()
        host = self.headers.get("Host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        origin = urlsplit(self.headers.get("Origin", "")).hostname
        if name not in LOCAL_NAMES or (origin and origin not in LOCAL_NAMES):
            self._send(GoogleError(403, "The fake cloud serves this machine only.").response())
            return None
        parts = urlsplit(self.path)
        return Request(
            method=self.command,
            path=parts.path,
            query=parse_qs(parts.query, keep_blank_values=True),
            headers={key.lower(): value for key, value in self.headers.items()},
            body=body,
        )

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b"\n", b""):
            pass  # trailers
        return b"".join(chunks)

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        headers = {name.lower() for name in response.headers}
        for name, value in response.headers.items():
            self.send_header(name, value)
        bodyless = response.status in (204, 304) or response.status < 200
        if "content-length" not in headers and not bodyless:
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD" and not bodyless:
            self.wfile.write(response.body)

    def _break(self) -> None:
        """End the connection without a word."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are recorded, not printed."""


def _own(state: Path) -> IO[str]:
    """Lock a state folder for one server."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = (state / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise OutsideError(
            f"a fake cloud already runs on {state}"
            "\n  fix: use that one, or give another folder with --state"
        ) from error
    return file


def _write_server_file(state: Path, *, port: int) -> None:
    """Tell other processes where this server is."""
    aside = state / "server.json.tmp"
    value = {"pid": os.getpid(), "port": port, "url": f"http://{LOOPBACK}:{port}"}
    aside.write_text(json.dumps(value), encoding="utf-8")
    aside.replace(state / "server.json")
    (state / "port").write_text(str(port), encoding="utf-8")
