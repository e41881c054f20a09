"""Where a run's files survive its machine: a folder, or a bucket of Cloud Storage.

Files and small texts flow in under slash-separated names and come back with their size and
checksum; every write may demand the generation it replaces, so two writers cannot overwrite each
other unseen. Names cannot leave the store's prefix. Folders are here, buckets in `store_bucket.py`;
what a run keeps in a store, and when, is `mirror.py`'s. No torch here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from saccade.config.errors import InputError, OutsideError

CHUNK_BYTES = 1 << 20


class StoreError(OutsideError):
    """The store cannot be reached, or refused; nothing about the run itself is wrong."""


class StoreConflict(StoreError):
    """Another writer changed the object in between."""


@dataclass(frozen=True)
class Stored:
    """What a store says about one of its files."""

    size: int
    checksum: str
    generation: int


class Store(Protocol):
    """A place for named files; names use `/` and stay below the store's prefix."""

    address: str

    def stat(self, name: str) -> Stored | None: ...

    def names(self, prefix: str) -> list[str]: ...

    def read(self, name: str) -> bytes | None: ...

    def fetch(self, name: str, target: Path) -> None: ...

    def write(self, name: str, data: bytes, *, replaces: int | None = None) -> Stored: ...

    def send(self, name: str, source: Path, *, replaces: int | None = None) -> Stored: ...

    def delete(self, name: str) -> None: ...

    def checksum(self, source: Path) -> str: ...

    def sha256(self, name: str) -> str: ...


def open_store(address: str, *, env: Mapping[str, str] = os.environ) -> Store:
    """Open a store by its address, a folder or `gs://bucket/prefix`; contacts nobody yet."""
    if address.startswith("gs://"):
        from saccade.training.store_bucket import BucketStore

        bucket, _, prefix = address.removeprefix("gs://").partition("/")
        if not bucket:
            raise InputError(f"run.store = {address}: no bucket\n  fix: run.store=gs://BUCKET")
        prefix = prefix.strip("/")
        return BucketStore(bucket, prefix=safe_name(prefix) if prefix else "", env=env)
    if "://" in address:
        raise InputError(
            f"run.store = {address}: unknown kind of store"
            "\n  fix: give a folder, or gs://BUCKET/PREFIX"
        )
    return FolderStore(Path(address).expanduser())


def safe_name(name: str) -> str:
    """The name itself; raises InputError when it could leave its prefix."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(
        character in name for character in "\\\0\r\n"
    ):
        raise InputError(
            f"{name!r}: not a name inside a store (no empty part, `.`, `..` or backslash)"
            "\n  fix: choose another run.name or run.store"
        )
    return name


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class FolderStore:
    """A folder, for instance a mounted disk; generations are modification times."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = str(root)

    def stat(self, name: str) -> Stored | None:
        """Size, checksum and generation of a file, read from the disk."""
        path = self._path(name)
        with _folder_errors(self.address):
            if not path.is_file():
                return None
            about = path.stat()
            return Stored(about.st_size, self.checksum(path), about.st_mtime_ns)

    def names(self, prefix: str) -> list[str]:
        """All files below a prefix, sorted."""
        folder = self._path(prefix.rstrip("/"))
        with _folder_errors(self.address):
            found = [path for path in folder.rglob("*") if path.is_file()]
        names = [path.relative_to(self.root).as_posix() for path in found]
        return sorted(one for one in names if not one.rpartition("/")[2].startswith(".tmp-"))

    def read(self, name: str) -> bytes | None:
        """A file's content, or None."""
        with _folder_errors(self.address):
            try:
                return self._path(name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file out."""
        with _folder_errors(self.address):
            shutil.copyfile(self._path(name), target)

    def write(self, name: str, data: bytes, *, replaces: int | None = None) -> Stored:
        """Write a small file, whole or not at all."""
        with _folder_errors(self.address):
            aside = self._aside(name)
            aside.write_bytes(data)
            return self._commit(name, aside, replaces)

    def send(self, name: str, source: Path, *, replaces: int | None = None) -> Stored:
        """Copy a file in, whole or not at all."""
        with _folder_errors(self.address):
            aside = self._aside(name)
            shutil.copyfile(source, aside)
            return self._commit(name, aside, replaces)

    def delete(self, name: str) -> None:
        """Remove a file; one that is gone already is fine."""
        with _folder_errors(self.address):
            self._path(name).unlink(missing_ok=True)

    def checksum(self, source: Path) -> str:
        """SHA-256 of a local file."""
        return file_sha256(source)

    def sha256(self, name: str) -> str:
        """SHA-256 of what is stored, read back from the disk."""
        with _folder_errors(self.address):
            return file_sha256(self._path(name))

    def _path(self, name: str) -> Path:
        return self.root / safe_name(name)

    def _aside(self, name: str) -> Path:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".tmp-{os.getpid()}-{path.name}")

    def _commit(self, name: str, aside: Path, replaces: int | None) -> Stored:
        path = self._path(name)
        now = path.stat().st_mtime_ns if path.is_file() else 0
        if replaces is not None and replaces != now:
            aside.unlink()
            raise StoreConflict(f"{self.address}/{name}: changed by another writer")
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        stored = self.stat(name)
        if stored is None:
            raise StoreConflict(f"{self.address}/{name}: removed by another writer")
        return stored


@contextmanager
def _folder_errors(address: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or address}: {error.strerror or error}"
            "\n  fix: check that the store is mounted, writable and not full"
        ) from error
