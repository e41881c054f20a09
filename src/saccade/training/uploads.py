"""Uploads beside the training: one background thread that always takes the newest checkpoint.

Finished checkpoint folders flow in from the step boundary and return at once; they leave for the
store while training goes on. A folder that waits is replaced by a newer one. What became of each
upload flows back as reports that the boundary turns into events: the thread itself writes no log
and touches no tensor. What is uploaded, and in which order, is `mirror.py`'s.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.config.errors import SaccadeError
from saccade.training.mirror import Mirror, Uploaded

TRIES = 3
FIRST_PAUSE_SECONDS = 1.0
GRACE_SECONDS = 20.0
"""How long a run that must stop waits for its last upload; the platform's notice is about 30 s."""


@dataclass(frozen=True)
class Report:
    """One event that an upload gave rise to."""

    type: str
    fields: dict[str, Any]


class NoUploads:
    """What a run without a store has."""

    last: Uploaded | None = None

    def submit(self, folder: Path, *, step: int) -> None:
        """Do nothing."""

    def reports(self) -> list[Report]:
        """Nothing to report."""
        return []

    def wait(self, seconds: float | None = None) -> bool:
        """Nothing is under way."""
        return True

    def close(self, seconds: float) -> bool:
        """Nothing to close."""
        return True


class Uploads(NoUploads):
    """Uploads checkpoints of one run in the background, newest first."""

    def __init__(
        self, mirror: Mirror, *, tries: int = TRIES, pause_s: float = FIRST_PAUSE_SECONDS
    ) -> None:
        self.mirror = mirror
        self.tries = tries
        self.pause_s = pause_s
        self.last: Uploaded | None = None
        self._changed = threading.Condition()
        self._next: tuple[int, Path] | None = None
        self._log_due = False
        self._busy = False
        self._closing = False
        self._reports: list[Report] = []
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()

    def submit(self, folder: Path, *, step: int) -> None:
        """Upload this checkpoint soon; one that still waits makes room for it."""
        held = _hold(folder)
        with self._changed:
            late, self._next = self._next, (step, held)
            if late is not None:
                self._reports.append(Report("upload_skipped", {"step": late[0], "newer": step}))
            self._changed.notify_all()
        if late is not None:
            _release(late[1])

    def reports(self) -> list[Report]:
        """What happened since the last call."""
        with self._changed:
            reports, self._reports = self._reports, []
        return reports

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is under way; False when time ran out first."""
        with self._changed:
            return self._changed.wait_for(self._idle, timeout=seconds)

    def close(self, seconds: float) -> bool:
        """Finish what waits, send the log once more, end the thread; False if time ran out."""
        with self._changed:
            self._log_due = True
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _idle(self) -> bool:
        return not self._busy and self._next is None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next or self._log_due or self._closing)
                job, self._next = self._next, None
                if job is None and not self._log_due:
                    return
                if job is None:
                    self._log_due = False
                self._busy = True
            try:
                if job is not None:
                    self._upload(*job)
                else:
                    self._send_log()
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _upload(self, step: int, held: Path) -> None:
        pause = self.pause_s
        try:
            for attempt in range(1, self.tries + 1):
                try:
                    done = self.mirror.push_checkpoint(held, step=step)
                except (SaccadeError, OSError) as error:
                    if attempt == self.tries or self._next is not None:
                        return self._failed(step, str(error), attempt)
                    time.sleep(pause * random.SystemRandom().uniform(0.5, 1.0))
                    pause *= 2
                else:
                    return self._succeeded(done)
        except Exception as error:  # a bug here must not end the thread and hang the run's end
            return self._failed(step, f"{error.__class__.__name__}: {error}", self.tries)
        finally:
            _release(held)

    def _succeeded(self, done: Uploaded) -> None:
        fields = {"step": done.step, "bytes": done.bytes, "seconds": done.seconds}
        with self._changed:
            self.last = done
            self._reports.append(Report("upload", fields))

    def _failed(self, step: int, message: str, tries: int) -> None:
        fields = {"step": step, "message": message, "tries": tries}
        with self._changed:
            self._reports.append(Report("upload_failed", fields))

    def _send_log(self) -> None:
        try:
            self.mirror.push_events()
        except (SaccadeError, OSError):
            return  # the log is a courtesy; checkpoints carry it, too


def _hold(folder: Path) -> Path:
    """Hard-link a checkpoint aside, so that pruning cannot take its files away meanwhile."""
    held = folder.with_name(f".tmp-upload-{folder.name}-{os.getpid()}")
    shutil.rmtree(held, ignore_errors=True)
    try:
        held.mkdir()
        for path in folder.iterdir():
            os.link(path, held / path.name)
    except OSError:  # no hard links here: upload from the folder itself and hope it stays
        shutil.rmtree(held, ignore_errors=True)
        return folder
    return held


def _release(held: Path) -> None:
    if held.name.startswith(".tmp-"):
        shutil.rmtree(held, ignore_errors=True)
