"""Log entries: kept in memory, appended to files, found again by Cloud Logging's filters.

Lines of containers and builds flow in as entries with an insertId and timestamps that never go
back; entries flow out in order. The API in front of it is `logging_api.py`.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Logbook:
    """All entries of all projects, oldest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._last = 0
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    self._entries.append(json.loads(line))
                except ValueError:
                    continue  # the last line of a server that was killed
        self._entries.sort(key=lambda entry: entry["timestamp"])

    def write(
        self,
        lines: Iterable[str],
        *,
        project: str,
        log: str,
        resource: Entry,
        severity: str = "DEFAULT",
        labels: dict[str, str] | None = None,
    ) -> None:
        """Append text lines as entries of one log and resource."""
        with self._lock:
            fresh = [
                self._entry(line, project=project, log=log, resource=resource, severity=severity)
                | ({"labels": labels} if labels else {})
                for line in lines
            ]
            self._entries.extend(fresh)
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"{project}.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in fresh)

    def add(self, entries: Iterable[Entry], *, project: str) -> None:
        """Append entries that a client wrote."""
        with self._lock:
            fresh = []
            for entry in entries:
                stamp, insert_id = self._stamp()
                fresh.append({"timestamp": stamp, "insertId": insert_id} | entry)
            self._entries.extend(fresh)
            with (self.folder / f"{project}.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in fresh)

    def entries(self) -> list[Entry]:
        """A copy of the list of all entries."""
        with self._lock:
            return list(self._entries)

    def clear(self) -> None:
        """Forget all entries."""
        with self._lock:
            self._entries.clear()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)

    def _entry(self, line: str, *, project: str, log: str, resource: Entry, severity: str) -> Entry:
        stamp, insert_id = self._stamp()
        return {
            "logName": f"projects/{project}/logs/{log}",
            "resource": resource,
            "timestamp": stamp,
            "receiveTimestamp": stamp,
            "severity": severity,
            "insertId": insert_id,
            "textPayload": line,
        }

    def _stamp(self) -> tuple[str, str]:
        """A time later than all before it, in nanoseconds, and an id of it."""
        self._last = max(time.time_ns(), self._last + 1)
        whole = datetime.fromtimestamp(self._last // 10**9, UTC)
        return f"{whole:%Y-%m-%dT%H:%M:%S}.{self._last % 10**9:09d}Z", f"{self._last:x}"
