"""The record of what saccade created in a project: intent first, then done.

One JSON file per project. Before a resource is created its entry is written as `intent`, after it
was seen it becomes `done`, before it is deleted `deleting`; every write is a locked
read-change-replace with fsync, so a SIGKILL at any point leaves a readable file that names
everything that may exist. Left out: labels, the second witness of ownership (`plan.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saccade.config.errors import OutsideError
from saccade.training.checkpoints import sync_folder

VERSION = 1
INTENT, DONE, DELETING = "intent", "done", "deleting"


@dataclass(frozen=True)
class Entry:
    """One resource that saccade made, or was about to make or delete."""

    id: str
    kind: str
    name: str
    region: str
    state: str
    time: str
    what: str = ""

    @property
    def certain(self) -> bool:
        """Whether the creation was seen to succeed."""
        return self.state != INTENT


class Manifest:
    """The entries of one project's file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> dict[str, Entry]:
        """Return all entries by id, in the order they were made."""
        return {key: Entry(id=key, **value) for key, value in self._read()["entries"].items()}

    def last_error(self) -> dict[str, str] | None:
        """Return the last failed step as {time, step, message}, None after a clean pass."""
        return self._read()["last_error"]

    def intend(self, id_: str, *, kind: str, name: str, region: str, what: str) -> None:
        """Record that a resource is about to be made; one that is recorded as done stays so."""

        def change(data: dict[str, Any]) -> None:
            known = data["entries"].get(id_)
            if known is None or known["state"] == DELETING:
                data["entries"][id_] = {
                    "kind": kind, "name": name, "region": region, "state": INTENT,
                    "time": _now(), "what": what,
                }  # fmt: skip

        self._change(change)

    def mark(self, id_: str, state: str) -> None:
        """Give a recorded resource a new state; an unknown one is ignored."""

        def change(data: dict[str, Any]) -> None:
            if id_ in data["entries"]:
                data["entries"][id_] |= {"state": state, "time": _now()}

        self._change(change)

    def forget(self, id_: str) -> None:
        """Remove the entry of a resource that was seen to be gone."""
        self._change(lambda data: data["entries"].pop(id_, None))

    def failed(self, step: str, message: str) -> None:
        """Record the last error."""
        error = {"time": _now(), "step": step, "message": message}
        self._change(lambda data: data.__setitem__("last_error", error))

    def succeeded(self) -> None:
        """Clear the last error after a pass without one."""
        if self.last_error() is not None:
            self._change(lambda data: data.__setitem__("last_error", None))

    def _change(self, change: Callable[[dict[str, Any]], object]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock")):
                data = self._read()
                change(data)
                _replace(self.path, json.dumps(data, indent=2) + "\n")
        except OSError as error:
            raise OutsideError(
                f"{self.path}: the record of created resources cannot be written: "
                f"{error.strerror}\n  fix: export SACCADE_HOME=FOLDER that can be written"
            ) from error

    def _read(self) -> dict[str, Any]:
        empty = {"v": VERSION, "entries": {}, "last_error": None}
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return empty
        except (OSError, ValueError) as error:
            raise self._unreadable(str(error)) from error
        if not isinstance(data, dict) or data.get("v") != VERSION:
            raise self._unreadable(f"expected version {VERSION}")
        try:
            for key, value in data["entries"].items():
                asdict(Entry(id=key, **value))
        except (KeyError, TypeError, AttributeError) as error:
            raise self._unreadable(str(error)) from error
        return empty | data

    def _unreadable(self, reason: str) -> OutsideError:
        return OutsideError(
            f"{self.path}: the record of created resources cannot be read: {reason}\n"
            f"  fix: mv {self.path} {self.path}.broken   (labels still find what was created)"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
