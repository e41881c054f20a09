"""A loopback server with the Jobs API of Hugging Face, for the real client.

Jobs run as local processes with the bucket's mount as a folder; bodies are kept as they came in.
Answers can be lost (`drop`), refused (`refuse`), or fail (`fail`), each for the next matching call.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "hf_0123456789abcdef"
NAME = "somebody"


@dataclass
class FakeJobs:
    """The server; `bodies` are the requests that made jobs."""

    store: Path
    env: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    lose: int = 0
    """So many creations take effect and their answer is lost."""
    status: int = 0
    """Answer everything with this HTTP status."""

    def __enter__(self) -> FakeJobs:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        job_id = uuid.uuid4().hex[:24]
        job = {
            "id": job_id, "createdAt": now(), "dockerImage": body["dockerImage"],
            "command": body["command"], "arguments": [], "environment": body["environment"],
            "flavor": body["flavor"], "labels": body.get("labels"),
            # the service never gives values back
            "secrets": dict.fromkeys(body.get("secrets") or {}, ""),
            "status": {"stage": "SCHEDULING", "message": None},
            "owner": {"id": "1", "name": NAME, "type": "user"},
        }  # fmt: skip
        self.jobs[job_id], self.logs[job_id] = job, []
        threading.Thread(target=self._run, args=(job, body), daemon=True).start()
        return job

    def cancel(self, job_id: str) -> None:
        job = self.jobs[job_id]
        if job["status"]["stage"] in ("SCHEDULING", "RUNNING"):
            job["status"] = {"stage": "CANCELED", "message": None}
            job["finishedAt"] = now()
            if job_id in self.processes:
                self.processes[job_id].send_signal(signal.SIGTERM)

    def _run(self, job: dict[str, Any], body: dict[str, Any]) -> None:
        mounts = {one["mountPath"]: str(self.store) for one in body.get("volumes", [])}
        env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **self.env}
        for name, value in {**body["environment"], **(body.get("secrets") or {})}.items():
            for inside, outside in mounts.items():
                value = value.replace(inside, outside)
            env[name] = value
        process = subprocess.Popen(
            body["command"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.processes[job["id"]] = process
        if job["status"]["stage"] == "SCHEDULING":
            job["startedAt"] = now()
            job["status"] = {"stage": "RUNNING", "message": None}
        else:  # cancelled before there was anything to end
            process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        for line in process.stdout:
            self.logs[job["id"]].append({"timestamp": now(), "data": line.rstrip("\n")})
        code = process.wait()
        code = code if code >= 0 else 128 - code
        if job["status"]["stage"] == "RUNNING":
            job["finishedAt"] = now()
            message = None if code == 0 else f"Job failed with exit code: {code}"
            job["status"] = {"stage": "ERROR" if code else "COMPLETED", "message": message}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _handler(fake: FakeJobs) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            if self._refused():
                return
            parts = path.strip("/").split("/")
            if path == "/api/whoami-v2":
                self._send(200, {"name": NAME, "type": "user"})
            elif parts[:2] == ["api", "jobs"] and len(parts) == 3:
                wanted = [one.split("=", 1) for one in query.get("label", [])]
                found = [
                    job for job in fake.jobs.values()
                    if all((job["labels"] or {}).get(key) == value for key, value in wanted)
                ]  # fmt: skip
                self._send(200, found)
            elif parts[-1] == "logs" and parts[-2] in fake.jobs:
                events = [f"data: {json.dumps(one)}\n\n" for one in fake.logs[parts[-2]]]
                self._bytes(200, "".join(events).encode(), "text/event-stream")
            elif parts[-1] in fake.jobs:
                self._send(200, fake.jobs[parts[-1]])
            else:
                self._send(404, {"error": "not found"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self._refused():
                return
            parts = urlsplit(self.path).path.strip("/").split("/")
            if len(parts) == 3:
                job = fake.create(json.loads(body))
                if fake.lose:
                    fake.lose -= 1
                    self.close_connection = True
                    self.connection.close()
                else:
                    self._send(200, job)
            elif parts[-1] == "cancel" and parts[-2] in fake.jobs:
                fake.cancel(parts[-2])
                self._send(200, {})
            else:
                self._send(404, {"error": "not found"})

        def _refused(self) -> bool:
            if fake.status:
                self._send(fake.status, {"error": "no"})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._send(401, {"error": "Invalid credentials"})
            else:
                return False
            return True

        def _send(self, status: int, value: Any) -> None:
            self._bytes(status, json.dumps(value).encode(), "application/json")

        def _bytes(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
