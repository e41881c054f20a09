"""The record of every episode of a training: `episodes.jsonl` in the run directory.

Rows of a finished step flow in and are appended in one write, in the order of the steps; whole rows
flow out to reports. A process may die in the middle of a line: readers leave what is torn out, and
the next writer drops it. A run that continues from a checkpoint drops the rows of the steps after
it, which are made again, so no episode is ever there twice. What a row holds is
`grounding/episodes.py`'s.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade.training.events import plain

FILE = "episodes.jsonl"


class EpisodeLog:
    """Appends the episodes of one step after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def go_back_to(self, step: int) -> int:
        """Drop everything after this step, and a torn end; returns the bytes dropped.

        Steps never decrease within the file, so the rest is cut off: a process that dies here
        leaves the file as it was or as it shall be.
        """
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return 0
        keep = 0
        with self.path.open("rb") as file:
            for line in file:
                row = _parse(line)
                if row is None or int(row["step"]) > step:
                    break
                keep += len(line)
        if keep < size:
            os.truncate(self.path, keep)
        return size - keep

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a step's rows and flush them to disk; OSError (a full disk) is the caller's."""
        if not rows:
            return
        lines = [json.dumps(plain(row), ensure_ascii=True, allow_nan=False) for row in rows]
        data = ("\n".join(lines) + "\n").encode()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o644)
        try:
            written = os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if written < len(data):
            raise OSError(errno.ENOSPC, "no space left for the episodes", str(self.path))


def read_episodes(path: Path) -> Iterator[dict[str, Any]]:
    """All whole rows in order; a missing file holds none."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for row in map(_parse, file):
            if row is not None:
                yield row


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None
