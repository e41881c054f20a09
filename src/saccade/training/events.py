"""The event log of a run: one JSON object per line, appended, never rewritten.

Events flow in from the training loop (and from evaluation) and out to reports, sinks and the
terminal UI, which read nothing else. Each line carries `v` (schema version), `time` (seconds since
the epoch) and `type`; the fields of each type are in `FIELDS`. A process may die in the middle of
a line: the next writer starts on a fresh line and the reader skips what is torn. A resumed run
repeats the steps after its checkpoint; `step_series` keeps the last record of each. Not here: who
decides what is worth an event.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

VERSION = 1

FIELDS: dict[str, tuple[str, ...]] = {
    "run_start": ("recipe", "steps", "world_size", "threads", "device"),
    "resume": ("step", "checkpoint", "changed"),
    "plan": (
        "samples", "samples_per_step", "trainable_parameters", "parameters", "groups", "tokens",
        "memory",
    ),
    "step": (
        "step", "loss", "metrics", "learning_rate", "grad_norm", "samples_per_s", "tokens_per_s",
        "sample_ids",
    ),
    "gradients": ("step", "groups"),
    "eval": ("step", "metrics"),
    "checkpoint": ("step", "seconds", "bytes"),
    "warning": ("message",),
    "upload": ("step", "bytes", "seconds"),
    "upload_skipped": ("step", "newer"),
    "upload_failed": ("step", "message", "tries"),
    "preempted": ("step",),
    "failed": ("message",),
    "done": ("step", "metrics"),
}  # fmt: skip
"""Event types and the fields each one has beside `v`, `time` and `type`."""


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold; NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


class EventLog:
    """Appends events to one file; several processes may append, each line is one write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._torn = _ends_in_the_middle(path)

    def append(self, type: str, **fields: Any) -> None:
        """Append one event; OSError (a full disk) is the caller's to handle."""
        missing = [name for name in FIELDS[type] if name not in fields]
        if missing:
            raise KeyError(f"event {type!r} lacks {', '.join(missing)}")
        record = {"v": VERSION, "time": round(time.time(), 3), "type": type, **plain(fields)}
        line = json.dumps(record, ensure_ascii=True, allow_nan=False).encode() + b"\n"
        if self._torn:
            line = b"\n" + line
        # pessimistic until the whole line is out: a full disk may take half of it
        self._torn = True
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o644)
        try:
            written = os.write(descriptor, line)
        finally:
            os.close(descriptor)
        if written < len(line):
            raise OSError(errno.ENOSPC, "no space left for the event", str(self.path))
        self._torn = False


class SilentLog:
    """The log of every process but the first one."""

    def append(self, type: str, **fields: Any) -> None:
        """Do nothing."""


def _ends_in_the_middle(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # absent or empty
        return False


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read all whole events; a missing file is an empty log and torn lines are left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [event for event in map(_parse, lines) if event is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "type" in event else None


def step_series(events: Iterable[Mapping[str, Any]], *, type: str = "step") -> list[dict[str, Any]]:
    """For each step its last record of that type, in step order."""
    last = {event["step"]: dict(event) for event in events if event["type"] == type}
    return [last[step] for step in sorted(last)]
