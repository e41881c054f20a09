"""Threads that read: one per source, again and again, and one-off work beside them.

Functions flow in, values and errors flow into the store; the screen never waits for any of them.
Each source has exactly one thread, so a slow source is late by itself and asks nobody twice. Work
of the same name that is asked for again replaces the older answer. All threads are daemons: neither
leaving nor a crash waits for a network. Left out: what is read (`sources.py`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from saccade.config.errors import SaccadeError
from saccade.tui.store import Store

JITTER = 0.1
ASLEEP_FACTOR = 5.0
"""How much more rarely a source is read while nobody looks at the terminal."""


@dataclass
class Poller:
    """Reads one source every so often, as long as it is wanted."""

    name: str
    read: Callable[[], Any]
    every_s: float
    wanted: Callable[[], bool] = lambda: True
    asleep: Callable[[], bool] = lambda: False
    kick: threading.Event = field(default_factory=threading.Event)
    stopped: bool = False

    def start(self, store: Store) -> None:
        """Begin to read."""
        thread = threading.Thread(target=self._loop, args=(store,), name=f"poll {self.name}")
        thread.daemon = True
        thread.start()

    def stop(self) -> None:
        """Read no more."""
        self.stopped = True
        self.kick.set()

    def _loop(self, store: Store) -> None:
        while not self.stopped:
            if self.wanted():
                attempt(store, self.name, self.read, live=lambda: not self.stopped)
            pause = self.every_s * (1 + random.uniform(-JITTER, JITTER))
            self.kick.wait(pause * (ASLEEP_FACTOR if self.asleep() else 1.0))
            self.kick.clear()


def attempt(
    store: Store, name: str, read: Callable[[], Any], *, live: Callable[[], bool]
) -> None:  # fmt: skip
    """Read once; whatever goes wrong becomes an error of the source."""
    try:
        value = read()
    except SaccadeError as error:
        if live():
            store.fail(name, str(error))
    except Exception as error:  # no error of a source may end the interface
        if live():
            store.fail(name, f"{type(error).__name__}: {error}")
    else:
        if live():
            store.put(name, value)


class Work:
    """One-off work in threads; the newest call of a name is the one that counts."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._newest: dict[str, int] = {}

    def start(self, name: str, read: Callable[[], Any]) -> None:
        """Do it in a thread; its value or error is put under this name."""
        number = self._newest.get(name, 0) + 1
        self._newest[name] = number
        self.store.begin(name)

        def live() -> bool:
            return self._newest.get(name) == number

        thread = threading.Thread(
            target=attempt, args=(self.store, name, read), kwargs={"live": live}, name=f"do {name}"
        )
        thread.daemon = True
        thread.start()

    def forget(self) -> None:
        """Let no work that still goes on put anything any more."""
        self._newest.clear()
