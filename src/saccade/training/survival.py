"""How one training process survives its machine: fetch, upload, beat, deliver.

A run directory and its place in the store come together here, around the training: what exists
elsewhere is fetched before the first step, checkpoints go up while it runs, and at the end the
finished run is delivered, DONE last. Without a store only the heartbeat is left. A store that
fails in the middle costs warnings; at the start and at the end it is the user's to mend (exit 3).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from saccade.config.errors import OutsideError, Preempted, SaccadeError
from saccade.config.schema import Config
from saccade.training.checkpoints import clean_leftovers, step_of
from saccade.training.guards import StopRequest
from saccade.training.heartbeat import Heartbeat
from saccade.training.mirror import Mirror, open_mirror
from saccade.training.rundir import RunDir
from saccade.training.store import StoreError, open_store
from saccade.training.uploads import GRACE_SECONDS, Uploads

if TYPE_CHECKING:
    from saccade.training.callbacks import Watchers

FINAL_TRIES = 5
FIRST_PAUSE_SECONDS = 1.0
POLL_SECONDS = 0.2
PHASES = {0: "done", Preempted.exit_code: "preempted"}


class Survival:
    """Store and heartbeat of one run in one process; `first` is the process that speaks."""

    def __init__(
        self, config: Config, *, run: RunDir, stop: StopRequest, console: Console, first: bool
    ) -> None:
        self.config = config
        self.run = run
        self.stop = stop
        self.console = console
        self.first = first
        self.mirror = open_mirror(config, run)
        self.heartbeat: Heartbeat | None = None

    def fetch(self) -> None:
        """Bring the run here from the store, on the first process."""
        if self.mirror is not None and self.first:
            clean_leftovers(self.run.checkpoints)
            self.mirror.pull(say=self._say, warn=lambda text: self._say(f"warning: {text}"))

    def done(self) -> dict[str, Any] | None:
        """DONE as written here, or, for processes of other machines, in the store."""
        there = self.mirror is not None and not self.first
        return self.run.done() or (self.mirror.done() if there and self.mirror else None)

    def bring_here(self, checkpoint: Path | None) -> Path | None:
        """Fetch the chosen checkpoint onto a machine that does not share the first one's disk."""
        if checkpoint is not None and self.mirror is not None and not checkpoint.is_dir():
            damage = self.mirror.fetch_checkpoint(step_of(checkpoint))
            if damage is not None and not checkpoint.is_dir():
                raise StoreError(f"damaged checkpoint in {self.mirror.store.address}: {damage}")
        return checkpoint

    def watch(self, watchers: Watchers) -> None:
        """Start uploading and beating beside the training."""
        if not self.first:
            return
        mirror, uploads, store = self.mirror, watchers.uploads, None
        if mirror is not None and self.config.run.store is not None:
            watchers.uploads = uploads = Uploads(mirror)
            # clients are not shared between threads
            store = open_store(self.config.run.store)
        self.heartbeat = Heartbeat(
            watchers.progress,
            run=self.config.run.name or self.config.recipe,
            folder=self.run.path,
            every_s=self.config.run.heartbeat_seconds,
            last_upload=lambda: uploads.last,
            store=store,
            home=mirror.home if mirror else "",
        )
        self.heartbeat.start()

    def finish(self, watchers: Watchers, *, step: int) -> None:
        """Wait for the last upload, then deliver; raises Preempted when asked to stop meanwhile."""
        if self.mirror is None or not self.first:
            return
        watchers.progress.begin("uploading")
        while not watchers.uploads.wait(POLL_SECONDS):
            self._stop_if_asked(step)
        watchers.note_uploads()
        self.deliver(step=step)

    def deliver(self, *, step: int) -> None:
        """Put the finished run into the store unless it is there; DONE goes last."""
        mirror = self.mirror
        if mirror is None or not self.first:
            return
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, FINAL_TRIES + 1):
            self._stop_if_asked(step)
            try:
                if mirror.done() is None:
                    mirror.push_finals(between=lambda: self._stop_if_asked(step))
                    self._say(f"{self.run.path}: delivered to {mirror.store.address}")
                return
            except (OutsideError, OSError) as error:
                if attempt == FINAL_TRIES:
                    raise self._undelivered(mirror, error) from error
            time.sleep(pause * random.SystemRandom().uniform(0.5, 1.0))
            pause *= 2

    def close(self, watchers: Watchers, *, exit_code: int) -> None:
        """Let the last upload end within the grace time, and beat a last time."""
        if not self.first:
            return
        if not watchers.uploads.close(GRACE_SECONDS):
            self._say("warning: the last upload was cut short; the checkpoint before it counts")
        _quietly(watchers.note_uploads)
        if self.heartbeat is not None:
            self.heartbeat.close(PHASES.get(exit_code, "failed"))

    def _stop_if_asked(self, step: int) -> None:
        if self.stop:
            raise Preempted(
                f"{self.run.path}: stopped by {self.stop.reason} at step {step}; the run is"
                " complete here but not yet delivered\n  to continue: run the same command"
            )

    def _undelivered(self, mirror: Mirror, error: Exception) -> OutsideError:
        return OutsideError(
            f"{self.run.path}: the run is complete here, but it could not be delivered to"
            f" {mirror.store.address}: {error}"
            "\n  fix: mend the store, then run the same command: it only uploads"
        )

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


def _quietly(action: Callable[[], None]) -> None:
    """The end of a run that already failed must not fail again over its log."""
    try:
        action()
    except (OSError, SaccadeError):
        return
