"""New whole lines of a file that grows: read from where the last look ended, never from the start.

A path flows in, complete lines flow out; held are a position and the bytes of one unfinished line.
Each look reads at most one chunk, so a large file is taken in pieces and memory stays bounded. A
file that was replaced or cut short is read again from its start. Errors of the file system are the
caller's: an unreadable log is a fact to show. Left out: what lines mean (`runs.py`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 1 << 20


class Tail:
    """The unread end of one file."""

    def __init__(self, path: Path, *, chunk: int = CHUNK_BYTES) -> None:
        self.path = path
        self.chunk = chunk
        self.position = 0
        self.size = 0
        self.restarts = 0
        self._inode: int | None = None
        self._rest = b""
        self._skipping = False

    @property
    def behind(self) -> int:
        """Bytes that were there at the last look and are not read yet."""
        return max(0, self.size - self.position)

    def skip_to_end(self, *, keep: int) -> None:
        """Leave all but the last `keep` bytes unread; the first, torn line goes with them."""
        size = self.path.stat().st_size
        if size > keep:
            self.position, self._skipping = size - keep, True

    def lines(self) -> list[bytes]:
        """Return the next whole lines; empty when nothing is new or the file is not there."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.size = self.position = 0
            return []
        try:
            found = os.fstat(descriptor)
            self.size = found.st_size
            if self._inode not in (None, found.st_ino) or found.st_size < self.position:
                self.position, self._rest = 0, b""
                self._skipping = False
                self.restarts += 1
            self._inode = found.st_ino
            if found.st_size == self.position:
                return []
            content = os.pread(descriptor, self.chunk, self.position)
        finally:
            os.close(descriptor)
        self.position += len(content)
        *whole, self._rest = (self._rest + content).split(b"\n")
        if len(self._rest) > LONGEST_LINE_BYTES:  # no log of ours has such a line
            self._rest, self._skipping = b"", True
        if self._skipping and whole:
            whole, self._skipping = whole[1:], False
        return whole

    def events(self) -> list[dict[str, Any]]:
        """Return the next whole events; what is no event is left out."""
        found = []
        for line in self.lines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("type"), str):
                found.append(event)
        return found
