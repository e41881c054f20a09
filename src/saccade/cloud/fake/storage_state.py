"""What the fake storage remembers: buckets, objects and their bytes, on disk.

Resources flow in as JSON values with their bytes and survive a restart of the server: one folder
per bucket with `bucket.json`, one JSON file per object (named by a hash of the object's name, so no
name can leave the folder) and one data file per generation. Replaced and deleted objects stay
behind as soft-deleted ones while the bucket's policy says so. HTTP and Google's rules are
`storage.py`'s; nothing here locks, the caller holds one lock for all of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google_crc32c

Resource = dict[str, Any]
Clock = Callable[[], float]
SOFT_DELETE_SECONDS = 7 * 24 * 3600


@dataclass
class Bucket:
    """One bucket: its resource, its owner, its live and its soft-deleted objects."""

    folder: Path
    project: str
    resource: Resource
    policy: Resource = field(default_factory=dict)
    objects: dict[str, Resource] = field(default_factory=dict)
    deleted: list[Resource] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The bucket's name."""
        return self.resource["name"]

    @property
    def keeps_deleted_s(self) -> int:
        """How long deleted objects stay restorable; 0 = not at all."""
        policy = self.resource.get("softDeletePolicy") or {}
        return int(policy.get("retentionDurationSeconds", 0))


class StorageState:
    """All buckets below one folder; every change is on disk before it is answered."""

    def __init__(self, root: Path, *, clock: Clock = time.time) -> None:
        self.root = root
        self.clock = clock
        self.buckets: dict[str, Bucket] = {}
        self._last_generation = 0
        for file in sorted(root.glob("*/bucket.json")):
            self._load(file.parent)

    def new_generation(self) -> int:
        """A number that grows with every write, as Google's microseconds do."""
        self._last_generation = max(self._last_generation + 1, int(self.clock() * 1e6))
        return self._last_generation

    def add_bucket(self, project: str, resource: Resource) -> Bucket:
        """Create a bucket's folder and remember it."""
        folder = self.root / resource["name"]
        for part in ("objects", "data", "deleted"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        bucket = Bucket(folder=folder, project=project, resource=resource)
        self.save_bucket(bucket)
        self.buckets[bucket.name] = bucket
        return bucket

    def save_bucket(self, bucket: Bucket) -> None:
        """Write a bucket's own resource and policy."""
        content = {
            "project": bucket.project,
            "resource": bucket.resource,
            "policy": bucket.policy,
        }
        _write_json(bucket.folder / "bucket.json", content)

    def drop_bucket(self, bucket: Bucket) -> None:
        """Forget a bucket and everything it held."""
        del self.buckets[bucket.name]
        shutil.rmtree(bucket.folder, ignore_errors=True)

    def put(self, bucket: Bucket, resource: Resource, data: bytes) -> None:
        """Store an object's bytes and its resource; what it replaces is soft-deleted."""
        aside = bucket.folder / "data" / f".{resource['generation']}"
        aside.write_bytes(data)
        aside.replace(self._data(bucket, resource))
        before = bucket.objects.get(resource["name"])
        self.save_object(bucket, resource)
        if before is not None:
            self._retire(bucket, before)

    def save_object(self, bucket: Bucket, resource: Resource) -> None:
        """Write an object's resource; its bytes stay as they are."""
        _write_json(_object_file(bucket, resource["name"]), resource)
        bucket.objects[resource["name"]] = resource

    def delete(self, bucket: Bucket, name: str) -> None:
        """Take an object out of the live ones."""
        resource = bucket.objects.pop(name)
        _object_file(bucket, name).unlink()
        self._retire(bucket, resource)

    def restore(self, bucket: Bucket, resource: Resource) -> Resource:
        """Make a soft-deleted object live again, as a new generation."""
        data = self.read(bucket, resource)
        fresh = {
            name: value
            for name, value in resource.items()
            if name not in ("softDeleteTime", "hardDeleteTime")
        }
        fresh["generation"] = str(self.new_generation())
        self.put(bucket, fresh, data)
        return fresh

    def read(self, bucket: Bucket, resource: Resource) -> bytes:
        """An object's bytes."""
        return self._data(bucket, resource).read_bytes()

    def purge(self, bucket: Bucket) -> None:
        """Remove soft-deleted objects whose time is over."""
        now = stamp(self.clock())
        for resource in [one for one in bucket.deleted if one["hardDeleteTime"] <= now]:
            bucket.deleted.remove(resource)
            _deleted_file(bucket, resource).unlink(missing_ok=True)
            self._data(bucket, resource).unlink(missing_ok=True)

    def _retire(self, bucket: Bucket, resource: Resource) -> None:
        keep = bucket.keeps_deleted_s
        if keep <= 0:
            self._data(bucket, resource).unlink(missing_ok=True)
            return
        now = self.clock()
        old = {
            **resource,
            "softDeleteTime": stamp(now),
            "hardDeleteTime": stamp(now + keep),
        }
        _write_json(_deleted_file(bucket, old), old)
        bucket.deleted.append(old)

    def _data(self, bucket: Bucket, resource: Resource) -> Path:
        return bucket.folder / "data" / str(resource["generation"])

    def _load(self, folder: Path) -> None:
        content = json.loads((folder / "bucket.json").read_text("utf-8"))
        bucket = Bucket(
            folder=folder,
            project=content["project"],
            resource=content["resource"],
            policy=content["policy"],
        )
        bucket.objects = {one["name"]: one for one in _read_folder(folder / "objects")}
        bucket.deleted = list(_read_folder(folder / "deleted"))
        written = [int(one["generation"]) for one in (*bucket.objects.values(), *bucket.deleted)]
        self._last_generation = max(self._last_generation, *written, 0)
        self.buckets[bucket.name] = bucket


def stamp(seconds: float) -> str:
    """A time as Google writes it: RFC 3339 with milliseconds, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def seconds_of(text: str) -> float:
    """The seconds since the epoch of an RFC 3339 time."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def crc32c(data: bytes) -> str:
    """Google's checksum of an object: CRC32C, big-endian, base64."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def md5(data: bytes) -> str:
    """The MD5 of an object in base64."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _object_file(bucket: Bucket, name: str) -> Path:
    key = hashlib.sha256(name.encode()).hexdigest()[:40]
    return bucket.folder / "objects" / f"{key}.json"


def _deleted_file(bucket: Bucket, resource: Resource) -> Path:
    return bucket.folder / "deleted" / f"{resource['generation']}.json"


def _read_folder(folder: Path) -> Iterator[Resource]:
    for file in sorted(folder.glob("*.json")):
        yield json.loads(file.read_text("utf-8"))


def _write_json(path: Path, content: Any) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(content), encoding="utf-8")
    aside.replace(path)
