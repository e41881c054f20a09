"""A sign of life every few seconds, for whoever watches from elsewhere.

What the loop already shows to a person (step, loss, speed, phase) and what the store holds flow in
as plain numbers; `heartbeat.json` flows out, into the run directory and beside the run in its
store. A thread writes it, so it keeps coming during a long step or an evaluation; it reads numbers
only and touches no tensor. `time` is when the process was alive, `stepped_at` when it last
finished a step. A heartbeat that cannot be written is left out: it is never a reason to stop.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from saccade.config.errors import SaccadeError
from saccade.training.mirror import Uploaded
from saccade.training.progress import Progress
from saccade.training.rundir import write_atomically
from saccade.training.store import Store

VERSION = 1
FILE = "heartbeat.json"
LAST_BEAT_SECONDS = 5.0
"""How long the end of a run waits for its last sign of life."""

log = logging.getLogger(__name__)


class Heartbeat:
    """Beats until closed; `every_s` of 0 never beats."""

    def __init__(
        self,
        progress: Progress,
        *,
        run: str,
        folder: Path,
        every_s: float,
        last_upload: Callable[[], Uploaded | None] = lambda: None,
        store: Store | None = None,
        home: str = "",
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self.progress = progress
        self.run = run
        self.folder = folder
        self.every_s = every_s
        self.last_upload = last_upload
        self.store = store
        self.home = home
        self.attempt = int(env.get("SACCADE_ATTEMPT") or 1)
        self._end: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat now and from here on."""
        if self.every_s > 0:
            self._thread.start()

    def close(self, phase: str) -> None:
        """Beat once more with how the run ended, and stop."""
        if self.every_s <= 0:
            return
        self._end = phase
        self._stop.set()
        self._thread.join(LAST_BEAT_SECONDS)

    def content(self) -> dict[str, Any]:
        """What a beat says."""
        progress, last = self.progress, self.last_upload()
        checkpoint = last and {
            "step": last.step, "bytes": last.bytes, "sha256": last.sha256, "uploaded_at": last.at,
        }  # fmt: skip
        return {
            "v": VERSION,
            "time": round(time.time(), 3),
            "run": self.run,
            "attempt": self.attempt,
            "step": progress.step,
            "steps": progress.steps,
            "loss": progress.loss,
            "samples_per_second": round(progress.samples_per_s, 2),
            "stepped_at": progress.stepped_at and round(progress.stepped_at, 3),
            "last_checkpoint": checkpoint,
            "phase": self._end or progress.phase,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }

    def beat(self) -> None:
        """Write one beat, here and into the store; failures are left out."""
        text = json.dumps(self.content()) + "\n"
        try:
            write_atomically(self.folder / FILE, text)
            if self.store is not None:
                self.store.write(f"{self.home}/{FILE}", text.encode())
        except (OSError, SaccadeError) as error:
            log.debug("heartbeat left out: %s", error)

    def _work(self) -> None:
        self.beat()
        while not self._stop.wait(self.every_s):
            self.beat()
        self.beat()
