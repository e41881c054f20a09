"""Cloud Storage: buckets, and objects that fit in memory (archives, configurations, heartbeats).

Names, JSON objects and bytes flow in and out; contents are checked against Google's MD5. Writes
may demand a generation, so that two writers never overwrite each other unseen. Checkpoints, which
are large and uploaded in the background, go through `training/store.py`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from saccade.cloud.api.transport import (
    Google,
    NotFound,
    PreconditionFailed,
    Unreachable,
)
from saccade.config.errors import InputError

SERVICE = "storage"
MUST_BE_NEW = 0
"""As `generation` of a write: the object must not exist."""


def get_bucket(google: Google, bucket: str) -> dict[str, Any] | None:
    """Read a bucket; None if there is none."""
    try:
        return google.call("GET", SERVICE, _bucket(bucket))
    except NotFound:
        return None


def list_buckets(google: Google, *, prefix: str = "") -> list[dict[str, Any]]:
    """List the project's buckets."""
    params = {"project": google.project, **({"prefix": prefix} if prefix else {})}
    return list(google.pages(SERVICE, "/storage/v1/b", items="items", params=params))


def create_bucket(google: Google, *, body: dict[str, Any]) -> dict[str, Any]:
    """Make a bucket; a lost answer counts as done only if the bucket is in this project."""

    def settle() -> dict[str, Any] | None:
        mine = [one for one in list_buckets(google) if one.get("name") == body["name"]]
        return mine[0] if mine else None

    params = {"project": google.project}
    return google.call("POST", SERVICE, "/storage/v1/b", body=body, params=params, settle=settle)


def patch_bucket(
    google: Google, bucket: str, *, changes: dict[str, Any], metageneration: int | None = None
) -> dict[str, Any]:
    """Change the named fields of a bucket."""
    params = {} if metageneration is None else {"ifMetagenerationMatch": metageneration}
    return google.call("PATCH", SERVICE, _bucket(bucket), body=changes, params=params)


def delete_bucket(google: Google, bucket: str) -> bool:
    """Delete an empty bucket; returns False if there is none."""
    try:
        google.call("DELETE", SERVICE, _bucket(bucket))
    except NotFound:
        return False
    return True


def list_objects(
    google: Google, bucket: str, *, prefix: str = "", versions: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the objects below a prefix, by name."""
    params: dict[str, Any] = {"prefix": prefix} if prefix else {}
    if versions:
        params["versions"] = "true"
    yield from google.pages(SERVICE, f"{_bucket(bucket)}/o", items="items", params=params)


def stat_object(google: Google, bucket: str, name: str) -> dict[str, Any] | None:
    """Read an object's size, hashes and generation; None if there is none."""
    try:
        return google.call("GET", SERVICE, _object(bucket, name))
    except NotFound:
        return None


def read_object(google: Google, bucket: str, name: str, *, generation: int | None = None) -> bytes:
    """Read an object's content and check it; raises NotFound if there is none."""
    params: dict[str, Any] = {"alt": "media"}
    if generation is not None:
        params["generation"] = generation
    data, headers = google.fetch(SERVICE, _object(bucket, name), params=params)
    said = _md5_of_header(headers.get("x-goog-hash", ""))
    if said is not None and said != _md5(data):
        raise Unreachable(
            f"gs://{bucket}/{name} arrived damaged ({len(data)} bytes)\n  fix: repeat the command",
            service=SERVICE, reason="CHECKSUM", url=_object(bucket, name),
        )  # fmt: skip
    return data


def write_object(
    google: Google,
    bucket: str,
    name: str,
    data: bytes,
    *,
    content_type: str = "application/octet-stream",
    generation: int | None = None,
) -> dict[str, Any]:
    """Write an object; `generation` is the one it must replace (`MUST_BE_NEW`: none).

    Raises PreconditionFailed if another writer was faster with other content.
    """
    params: dict[str, Any] = {"uploadType": "media", "name": checked_name(name)}
    if generation is not None:
        params["ifGenerationMatch"] = generation
    path = f"/upload{_bucket(bucket)}/o"

    def same() -> dict[str, Any] | None:
        found = stat_object(google, bucket, name)
        return found if found is not None and found.get("md5Hash") == _md5(data) else None

    try:
        return google.send(
            "POST", SERVICE, path, data=data, content_type=content_type, params=params, settle=same
        )
    except PreconditionFailed:
        if (found := same()) is not None:  # our own first try, or an equal writer
            return found
        raise


def delete_object(google: Google, bucket: str, name: str, *, generation: int | None = None) -> bool:
    """Delete an object (one generation of it); returns False if there is none."""
    params = {} if generation is None else {"generation": generation}
    try:
        google.call("DELETE", SERVICE, _object(bucket, name), params=params)
    except NotFound:
        return False
    return True


def checked_name(name: str) -> str:
    """Return an object name, refusing those that leave their prefix or that Google refuses."""
    parts = name.split("/")
    bad = not name or name.startswith("/") or any(part in (".", "..", "") for part in parts)
    if bad or len(name.encode()) > 1024 or any(ord(char) < 32 for char in name):
        raise InputError(f"not an object name: {name!r} (no empty, '.' or '..' parts)")
    return name


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _md5_of_header(value: str) -> str | None:
    for part in value.split(","):
        kind, _, digest = part.strip().partition("=")
        if kind == "md5":
            return digest
    return None


def _bucket(bucket: str) -> str:
    return f"/storage/v1/b/{quote(bucket, safe='')}"


def _object(bucket: str, name: str) -> str:
    return f"{_bucket(bucket)}/o/{quote(name, safe='')}"
