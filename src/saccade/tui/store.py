"""What is known now, by source: the last good value, its age, and what went wrong since.

Pollers and workers of other threads put values and errors in; the screen that is drawn takes them
out, several times a second, without waiting. A source that fails keeps its last value: old truth
with its age is worth more than an empty screen. The last errors stay findable. Left out: reading
anything.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

ERRORS_KEPT = 200


@dataclass(frozen=True)
class Entry:
    """One source: its value, when it was read, and the last failure since."""

    value: Any = None
    at: float | None = None
    version: int = 0
    error: str = ""
    error_at: float | None = None
    busy: bool = False

    def age_s(self, *, now: float) -> float | None:
        """Seconds since the value was read."""
        return None if self.at is None else max(0.0, now - self.at)


@dataclass(frozen=True)
class Said:
    """An error, or a note worth finding again."""

    at: float
    source: str
    text: str
    level: str = "error"


@dataclass
class Store:
    """Entries by name; safe to use from several threads."""

    clock: Callable[[], float] = time.time
    said: deque[Said] = field(default_factory=lambda: deque(maxlen=ERRORS_KEPT))
    _entries: dict[str, Entry] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, name: str) -> Entry:
        """Return what is known of a source; an empty entry before its first value."""
        return self._entries.get(name, _NOTHING)

    def put(self, name: str, value: Any) -> None:
        """Keep a value; errors from before it are over."""
        with self._lock:
            version = self.get(name).version + 1
            self._entries[name] = Entry(value, self.clock(), version)

    def begin(self, name: str) -> None:
        """Mark a source as being read now."""
        with self._lock:
            known = self.get(name)
            self._entries[name] = replace(known, busy=True, version=known.version + 1)

    def fail(self, name: str, text: str) -> None:
        """Keep the last value and say what went wrong; the same error twice is said once."""
        with self._lock:
            known = self.get(name)
            fresh = known.error != text
            self._entries[name] = replace(
                known, error=text, error_at=self.clock(), version=known.version + 1, busy=False
            )
        if fresh:
            self.say(name, text)

    def say(self, source: str, text: str, *, level: str = "error") -> None:
        """Remember an error or a note."""
        self.said.append(Said(self.clock(), source, text, level))


_NOTHING = Entry()
