"""A loopback server with the repository API of the Hugging Face hub, for the real client.

Repositories are folders in memory: regular files come base64-encoded in the commit, LFS files
through the batch API with a signed upload, and a commit that names an object which never arrived,
or arrived with other bytes, is refused. Bodies are kept as they came in.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "w" * 34
READ_TOKEN = "hf_" + "r" * 34
NAME = "somebody"
LARGEST_REGULAR_BYTES = 10_000_000
LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".whl")
NO_OID = "0" * 40
COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


@dataclass
class Repo:
    """One repository: files, and what was said when it was made."""

    made: dict[str, Any]
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[dict[str, Any]]] = field(default_factory=list)


@dataclass
class FakeHub:
    """The server; `repos` by `KIND/OWNER/NAME`, `seen` are all requests as (method, path)."""

    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    status: int = 0
    """Answer everything with this HTTP status."""

    def __enter__(self) -> FakeHub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        kind = body.get("type") or "model"
        owner = body.get("organization") or NAME
        key = f"{kind}/{owner}/{body['name']}"
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.url}/{prefix}{owner}/{body['name']}"
        if owner != NAME:
            return 403, {"error": f"You don't have the rights to create a {kind} under {owner}"}
        if kind == "space" and body.get("sdk") not in ("gradio", "docker", "static"):
            return 400, {"error": "sdk is missing"}
        if key in self.repos:
            return 409, {"error": "You already created this repo", "url": url}
        private = body.get("visibility") == "private" or bool(body.get("private"))
        self.repos[key] = Repo(made=body, private=private)
        return 200, {"url": url, "name": f"{owner}/{body['name']}"}

    def commit(
        self, repo: Repo, lines: list[dict[str, Any]], *, url: str = ""
    ) -> tuple[int, dict[str, Any]]:
        files = dict(repo.files)
        if not lines or lines[0]["key"] != "header" or not lines[0]["value"]["summary"]:
            return 400, {"error": "the first line is the header"}
        for one in lines[1:]:
            value = one["value"]
            if one["key"] == "file":
                content = base64.b64decode(value["content"])
                if must_be_lfs(value["path"], len(content)):
                    return 400, {"error": f"{value['path']} must be an LFS file"}
                files[value["path"]] = content
            elif one["key"] == "lfsFile":
                stored = self.objects.get(value["oid"])
                if stored is None or len(stored) != value["size"]:
                    return 400, {"error": f"no LFS object for {value['path']}"}
                files[value["path"]] = stored
            elif one["key"] == "deletedFile":
                files.pop(value["path"])
        repo.files = files
        repo.commits.append(lines)
        oid = hashlib.sha1(json.dumps(lines).encode()).hexdigest()
        return 200, {"commitUrl": f"{url}/commit/{oid}", "commitOid": oid, "success": True}


def must_be_lfs(path: str, size: int) -> bool:
    """The hub's rule: binary kinds and large files do not go into git itself."""
    return size > LARGEST_REGULAR_BYTES or path.endswith(LFS_SUFFIXES)


def problems_of(content: str, *, kind: str) -> list[str]:
    """What the hub says about a README's front matter."""
    parts = content.split("---\n")
    if not content.startswith("---\n") or len(parts) < 3:
        return ["there is no metadata"]
    head = yaml.safe_load(parts[1])
    if kind != "space":
        return [] if isinstance(head.get("license"), str) else ['"license" is missing']
    found = []
    if head.get("sdk") not in ("gradio", "docker", "static"):
        found.append('"sdk" must be one of [gradio, docker, static]')
    found += [
        f'"{key}" must be one of {list(COLORS)}'
        for key in ("colorFrom", "colorTo")
        if head.get(key, "red") not in COLORS
    ]
    if len(head.get("short_description", "")) > 60:
        found.append('"short_description" must be at most 60 characters')
    return found


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = self._parts("GET")
            if self._refused(write=False):
                pass
            elif parts == ["api", "whoami-v2"]:
                self._send(200, {"name": NAME, "type": "user"})
            elif (repo := self._repo(parts)) is None:
                self._send(404, {"error": "Repository not found"}, code="RepoNotFound")
            elif len(parts) > 4 and parts[4] == "tree":
                self._send(200, listing(repo))
            else:
                siblings = [{"rfilename": name} for name in repo.files]
                name = "/".join(parts[2:4])
                values = {"id": name, "private": repo.private, "sha": NO_OID, "siblings": siblings}
                self._send(200, values)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = self._parts("POST")
            if parts == ["api", "validate-yaml"]:
                body = json.loads(content)
                problems = problems_of(body["content"], kind=body["repoType"])
                found = [{"message": one} for one in problems]
                self._send(400 if found else 200, {"errors": found, "warnings": []})
            elif self._refused(write=True):
                pass
            elif parts == ["api", "repos", "create"]:
                self._send(*hub.create(json.loads(content)))
            elif parts[-4:] == ["info", "lfs", "objects", "batch"]:
                self._send(200, self._batch(json.loads(content)))
            elif (repo := self._repo(parts)) is None:
                self._send(404, {"error": "Repository not found"}, code="RepoNotFound")
            elif parts[4] == "preupload":
                self._send(200, {"files": [mode(one) for one in json.loads(content)["files"]]})
            else:
                lines = [json.loads(line) for line in content.splitlines()]
                # models have no prefix in the addresses that people open
                place = "/".join(part for part in parts[1:4] if part != "models")
                self._send(*hub.commit(repo, lines, url=f"{hub.url}/{place}"))

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            oid = self._parts("PUT")[-1]
            if "Authorization" in self.headers or hashlib.sha256(content).hexdigest() != oid:
                self._send(400, {"error": "a signed upload takes exactly the named bytes"})
            else:
                hub.objects[oid] = content
                self._send(200, {})

        def _batch(self, body: dict[str, Any]) -> dict[str, Any]:
            assert body["operation"] == "upload" and body["hash_algo"] == "sha256"
            made = []
            for one in body["objects"]:
                actions = {"upload": {"href": f"{hub.url}/signed/{one['oid']}", "header": {}}}
                known = {} if one["oid"] in hub.objects else {"actions": actions}
                made.append({**one, **known})
            return {"transfer": "basic", "objects": made}

        def _parts(self, method: str) -> list[str]:
            path = unquote(urlsplit(self.path).path)
            hub.seen.append((method, path))
            return path.strip("/").split("/")

        def _repo(self, parts: list[str]) -> Repo | None:
            kind = parts[1].removesuffix("s") if len(parts) > 3 else ""
            return hub.repos.get("/".join([kind, *parts[2:4]]))

        def _refused(self, *, write: bool) -> bool:
            given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if hub.status:
                self._send(hub.status, {"error": "no"})
            elif given not in (TOKEN, READ_TOKEN):
                self._send(401, {"error": "Invalid user token."})
            elif write and given == READ_TOKEN:
                self._send(403, {"error": "You must use a write token"})
            else:
                return False
            return True

        def _send(self, status: int, value: Any, *, code: str = "") -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            if status >= 400 and isinstance(value, dict) and "error" in value:
                self.send_header("X-Error-Message", str(value["error"]))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def listing(repo: Repo) -> list[dict[str, Any]]:
    """The tree of a repository."""
    return [
        {"type": "file", "path": name, "size": len(content), "oid": NO_OID}
        for name, content in repo.files.items()
    ]


def mode(file: dict[str, Any]) -> dict[str, Any]:
    """How the hub wants one file to come."""
    lfs = must_be_lfs(file["path"], file["size"])
    return {
        "path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False,
        "oid": None,
    }  # fmt: skip
