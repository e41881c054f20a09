"""The launch log: one JSON object per line, appended and flushed, and the view folded from it.

Every intent is written before its call and every outcome after it, so a process that dies at any
moment leaves a log from which the next one goes on: a submission without an outcome is repeated
(targets find the job that may exist), and money is counted from the recorded times. Events flow
in from the launch flow and the supervisor; a frozen `LaunchView` flows out to every reader. The
folder is `RUN_ROOT/.launches/RUN-TOKEN/`. Left out: deciding (`supervise.py`), money (`costs.py`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saccade.launch.view import FIELDS, LaunchView, fold, view_from_json, view_to_json
from saccade.training.events import read_events

VERSION = 1
FOLDER = ".launches"
"""Folder under `run.root` that holds all launches."""


class Launch:
    """The files of one launch; making the object touches nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.events_file = self.folder / "events.jsonl"
        self.config_file = self.folder / "config.yaml"
        self.cache_file = self.folder / "view.json"
        self.lock_file = self.folder / "watch.lock"

    @property
    def key(self) -> str:
        """RUN-TOKEN, the launch's name on the command line."""
        return self.folder.name

    def exists(self) -> bool:
        """Tell whether anything was logged."""
        return self.events_file.is_file()

    def append(self, type: str, *, at: float | None = None, **fields: Any) -> None:
        """Append one event and flush it to disk; OSError (a full disk) is the caller's."""
        missing = [name for name in FIELDS[type] if name not in fields]
        if missing:
            raise KeyError(f"launch event {type!r} lacks {', '.join(missing)}")
        moment = round(time.time() if at is None else at, 3)
        record = {"v": VERSION, "time": moment, "type": type, **fields}
        line = json.dumps(record, ensure_ascii=True, default=str).encode() + b"\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.events_file, flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a writer died in the middle of its line
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, "no space left for the event", str(self.events_file))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def events(self) -> list[dict[str, Any]]:
        """Read all whole events; torn lines are left out."""
        return [event for event in read_events(self.events_file) if event["type"] in FIELDS]

    def view(self) -> LaunchView:
        """Fold the log; a view kept from the last time is used while the log has not grown."""
        try:
            size = self.events_file.stat().st_size
        except OSError:
            return LaunchView(key=self.key)
        kept = self._kept(size)
        if kept is not None:
            return kept
        view = fold(self.events(), key=self.key)
        self._keep(view, size=size)
        return view

    def _kept(self, size: int) -> LaunchView | None:
        try:
            stored = json.loads(self.cache_file.read_bytes())
            if stored["size"] == size and stored["v"] == VERSION:
                return view_from_json(stored["view"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def _keep(self, view: LaunchView, *, size: int) -> None:
        aside = self.cache_file.with_name(f".view.{os.getpid()}.tmp")
        try:
            content = {"v": VERSION, "size": size, "view": view_to_json(view)}
            aside.write_text(json.dumps(content, default=str), encoding="utf-8")
            aside.replace(self.cache_file)
        except OSError:  # a cache that cannot be written costs time, nothing else
            aside.unlink(missing_ok=True)


def launches(root: Path) -> list[Launch]:
    """List every launch under a run root, the most recently changed first."""
    found = []
    try:
        with os.scandir(root / FOLDER) as entries:
            for entry in entries:
                launch = Launch(Path(entry.path))
                try:
                    found.append((launch.events_file.stat().st_mtime, launch))
                except OSError:  # a folder without a log
                    continue
    except OSError:
        return []
    return [launch for _, launch in sorted(found, key=lambda one: one[0], reverse=True)]


def launch_of(root: Path, *, run: str, token: str) -> Launch:
    """Where the launch of this run and token is, or would be."""
    return Launch(root / FOLDER / f"{run}-{token}")


def matching(all_launches: Iterable[Launch], *, name: str) -> list[Launch]:
    """Launches with this key or run name, in the given order."""
    found = []
    for launch in all_launches:
        if launch.key == name or (launch.key.startswith(f"{name}-") and launch.view().run == name):
            found.append(launch)
    return found
