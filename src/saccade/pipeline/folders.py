"""Where artifacts lie: a local folder with atomic, flushed writes, or anything fsspec can open.

Relative paths and bytes flow in and out. Locally a file is written aside, flushed to disk and
renamed; a bucket makes an object exist whole or not at all by itself. Left out: what the files
mean (`artifacts.py`).
"""

from __future__ import annotations

import io
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from saccade.config.errors import OutsideError
from saccade.training.checkpoints import sync_folder

LEFTOVER_SECONDS = 3600.0
"""Age at which a file written aside belongs to nobody any more."""


class Backend(Protocol):
    """Files by relative path."""

    def read(self, path: str) -> bytes: ...

    def open(self, path: str) -> BinaryIO: ...

    def write(self, path: str, content: bytes | BinaryIO) -> None: ...

    def create(self, path: str, content: bytes) -> bool: ...

    def names(self, path: str) -> list[str]: ...


def open_backend(address: str) -> Backend:
    """A local folder, or an fsspec address with its protocol."""
    protocol, separator, path = address.partition("://")
    if not separator:
        return LocalFolder(Path(address))
    return LocalFolder(Path(path)) if protocol == "file" else RemoteFolder(address)


class LocalFolder:
    """A folder on this machine (or on a disk that several machines share)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes:
        """The whole content; raises FileNotFoundError."""
        return (self.root / path).read_bytes()

    def open(self, path: str) -> BinaryIO:
        """Open for reading; raises FileNotFoundError."""
        return (self.root / path).open("rb")

    def write(self, path: str, content: bytes | BinaryIO) -> None:
        """Write aside, flush, rename: the file is there whole or not at all."""
        aside = self._aside(path, content)
        try:
            aside.replace(self.root / path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        sync_folder((self.root / path).parent)

    def create(self, path: str, content: bytes) -> bool:
        """Like `write`, but says False and changes nothing when the file is there already."""
        aside = self._aside(path, content)
        try:
            os.link(aside, self.root / path)
        except FileExistsError:
            return False
        finally:
            aside.unlink(missing_ok=True)
        sync_folder((self.root / path).parent)
        return True

    def names(self, path: str) -> list[str]:
        """Names of files and folders directly below; none when there is no such folder."""
        folder = self.root / path
        if not folder.is_dir():
            return []
        return [one.name for one in folder.iterdir() if not one.name.startswith(".tmp-")]

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        (self.root / path).unlink(missing_ok=True)

    def _aside(self, path: str, content: bytes | BinaryIO) -> Path:
        folder = (self.root / path).parent
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        aside = folder / f".tmp-{uuid.uuid4().hex}"
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        try:
            with aside.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        return aside


class RemoteFolder:
    """A bucket or other fsspec place; two writers of one new name are not kept apart there."""

    def __init__(self, address: str) -> None:
        import fsspec

        try:
            self.files: Any
            self.files, self.root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise OutsideError(
                f"artifacts: {address}: {error}\n  fix: install what this address needs, or"
                " use a folder"
            ) from error

    def read(self, path: str) -> bytes:
        """The whole content; raises FileNotFoundError."""
        return self.files.cat_file(self._at(path))

    def open(self, path: str) -> BinaryIO:
        """Open for reading; raises FileNotFoundError."""
        return self.files.open(self._at(path), "rb")

    def write(self, path: str, content: bytes | BinaryIO) -> None:
        """Write the whole object; it appears when it is complete."""
        self.files.makedirs(self._at(path).rpartition("/")[0], exist_ok=True)
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        with self.files.open(self._at(path), "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)

    def create(self, path: str, content: bytes) -> bool:
        """Write unless it is there."""
        if self.files.exists(self._at(path)):
            return False
        self.write(path, content)
        return True

    def names(self, path: str) -> list[str]:
        """Names directly below; none when there is no such folder."""
        self.files.invalidate_cache()
        try:
            found = self.files.ls(self._at(path), detail=False)
        except FileNotFoundError:
            return []
        return [one.rstrip("/").rpartition("/")[2] for one in found]

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"


def _clean(folder: Path) -> None:
    """Remove what killed writers left; young files may belong to somebody who is writing."""
    for one in folder.glob(".tmp-*"):
        with suppress(OSError):
            if time.time() - one.stat().st_mtime > LEFTOVER_SECONDS:
                one.unlink()
