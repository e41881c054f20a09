"""The three ways bytes enter the fake storage: plain, multipart, and resumable in chunks.

Upload requests flow in; `Upload`s (name, metadata, bytes) flow out when they are complete. A
resumable session lives on disk, so it survives a broken connection and a restart of the server:
what arrived stays, the client asks how much that is and goes on from there. Creating the object is
`storage.py`'s.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from saccade.cloud.fake.http import Request, Response
from saccade.cloud.fake.storage_rules import StorageError
from saccade.cloud.fake.storage_state import Resource

QUANTUM = 256 * 1024
"""Every chunk of a resumable upload but the last is a multiple of this."""
CONDITIONS = (
    "ifGenerationMatch", "ifGenerationNotMatch", "ifMetagenerationMatch",
    "ifMetagenerationNotMatch",
)  # fmt: skip
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Upload:
    """A whole object as it arrived, with the conditions under which it may be written."""

    bucket: str
    metadata: Resource
    data: bytes
    conditions: dict[str, list[str]]


def plain_upload(request: Request, bucket: str) -> Upload:
    """`uploadType=media`: the body is the object."""
    metadata = {"name": request.first("name")}
    if request.header("content-type"):
        metadata["contentType"] = request.header("content-type")
    return Upload(bucket, metadata, request.body, _conditions(request))


def multipart_upload(request: Request, bucket: str) -> Upload:
    """`uploadType=multipart`: metadata and bytes in one body."""
    parts = list(split_parts(request))
    if len(parts) != 2:
        raise StorageError(400, "A multipart upload needs exactly two parts.")
    (_, text), (headers, data) = parts
    metadata = _metadata(text, request)
    metadata.setdefault("contentType", headers.get("content-type", "application/octet-stream"))
    return Upload(bucket, metadata, data, _conditions(request))


def split_parts(request: Request) -> Iterator[tuple[dict[str, str], bytes]]:
    """The parts of a multipart body as (headers in lower case, content)."""
    match = re.search(r'boundary="?([^";]+)"?', request.header("content-type"))
    if match is None:
        raise StorageError(400, "Missing boundary in the multipart content type.")
    # clients end lines with CRLF or with a bare LF
    mark = re.compile(rb"(?:^|\r?\n)--" + re.escape(match.group(1).encode()))
    for piece in mark.split(request.body)[1:]:
        if piece.startswith(b"--"):
            return
        head, _, content = _cut_head(piece.lstrip(b"\r\n"))
        headers = BytesHeaderParser().parsebytes(head)
        yield {name.lower(): value for name, value in headers.items()}, content


def _cut_head(text: bytes) -> tuple[bytes, bytes, bytes]:
    """Split a message at its first empty line."""
    blank = re.search(rb"\r?\n\r?\n", text)
    if blank is None:
        return text, b"", b""
    return text[: blank.start()], blank.group(), text[blank.end() :]


def inner_request(content: bytes) -> Request:
    """The call inside one part of a batch."""
    head, _, body = _cut_head(content.lstrip())
    first, *rest = head.decode().splitlines()
    method, target, *_ = first.split(" ")
    address = urlsplit(target)
    headers = dict(line.split(":", 1) for line in rest if ":" in line)
    return Request(
        method,
        address.path,
        parse_qs(address.query, keep_blank_values=True),
        {name.lower().strip(): value.strip() for name, value in headers.items()},
        body.rstrip(b"\r\n"),
    )


class Sessions:
    """Resumable uploads in progress, below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def begin(self, request: Request, bucket: str) -> Response:
        """Open a session; the answer names the address for its chunks."""
        metadata = _metadata(request.body or b"{}", request)
        if request.header("x-upload-content-type"):
            metadata.setdefault("contentType", request.header("x-upload-content-type"))
        session = uuid.uuid4().hex
        self.root.mkdir(parents=True, exist_ok=True)
        content = {"bucket": bucket, "metadata": metadata, "conditions": _conditions(request)}
        (self.root / f"{session}.part").write_bytes(b"")
        (self.root / f"{session}.json").write_text(json.dumps(content), encoding="utf-8")
        host = request.header("host", "127.0.0.1")
        address = f"http://{host}/upload/storage/v1/b/{bucket}/o"
        headers = {
            "Location": f"{address}?uploadType=resumable&upload_id={session}",
            "X-GUploader-UploadID": session,
        }
        return Response(200, headers)

    def receive(self, request: Request) -> Upload | Resource | Response:
        """Take a chunk: the finished upload, its result if it was finished before, or 308."""
        session, about = self._find(request)
        if "result" in about:
            return about["result"]
        part = self.root / f"{session}.part"
        have = part.stat().st_size
        first, total = self._span(request)
        if first is not None:
            have = self._append(part, request.body, first=first, have=have, total=total)
        if total is None or have < total:
            return _incomplete(have)
        return Upload(about["bucket"], about["metadata"], part.read_bytes(), about["conditions"])

    def finish(self, request: Request, result: Resource) -> None:
        """Remember the outcome, for a client that missed the answer."""
        session, about = self._find(request)
        (self.root / f"{session}.json").write_text(json.dumps({**about, "result": result}))
        (self.root / f"{session}.part").unlink(missing_ok=True)

    def cancel(self, request: Request) -> Response:
        """Drop a session (DELETE on its address)."""
        session, _ = self._find(request)
        (self.root / f"{session}.json").unlink()
        (self.root / f"{session}.part").unlink(missing_ok=True)
        return Response(499)

    def object_of(self, request: Request) -> str:
        """The object that an upload call is about, where only its body or session says so."""
        if not request.path.startswith("/upload/") or request.first("name"):
            return ""
        try:
            if request.first("upload_id"):
                metadata = self._find(request)[1]["metadata"]
            elif request.first("uploadType") == "multipart":
                metadata = json.loads(next(split_parts(request))[1])
            else:
                metadata = json.loads(request.body or b"{}")
        except (StorageError, StopIteration, ValueError):
            return ""
        return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""

    def clear(self) -> None:
        """Drop every session."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _find(self, request: Request) -> tuple[str, dict[str, Any]]:
        session = request.first("upload_id")
        file = self.root / f"{session}.json"
        if not _ID.fullmatch(session) or not file.is_file():
            raise StorageError(404, "No such upload session.")
        return session, json.loads(file.read_text("utf-8"))

    def _span(self, request: Request) -> tuple[int | None, int | None]:
        """(first byte of this chunk or None for a status query, total size if known)."""
        header = request.header("content-range")
        if not header:
            return 0, len(request.body)
        match = _RANGE.fullmatch(header)
        if match is None:
            raise StorageError(400, f"Failed to parse Content-Range header: {header}")
        first, last, total = match.groups()
        size = None if total == "*" else int(total)
        if first is None:
            return None, size
        if int(last) - int(first) + 1 != len(request.body):
            raise StorageError(400, f"Content-Range {header} with {len(request.body)} bytes")
        return int(first), size

    def _append(self, part: Path, data: bytes, *, first: int, have: int, total: int | None) -> int:
        if first > have:
            raise StorageError(503, f"Expected the chunk at byte {have}, got {first}.")
        fresh = data[have - first :]
        ends = total is not None and first + len(data) == total
        if len(data) % QUANTUM and not ends:
            raise StorageError(400, f"Chunks must be multiples of {QUANTUM} bytes.")
        with part.open("ab") as file:
            file.write(fresh)
        return have + len(fresh)


def _incomplete(have: int) -> Response:
    # no Range header at all means that nothing has arrived yet
    headers = {"Range": f"bytes=0-{have - 1}"} if have else {}
    return Response(308, headers)


def _metadata(text: bytes, request: Request) -> Resource:
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise StorageError(400, "Metadata part is not JSON.", reason="parseError") from error
    if request.first("name"):
        metadata["name"] = request.first("name")
    return metadata


def _conditions(request: Request) -> dict[str, list[str]]:
    return {name: request.query[name] for name in CONDITIONS if name in request.query}
