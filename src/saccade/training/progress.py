"""What a person sees while a run works: a live line on a terminal, plain lines elsewhere.

The loop reports phases and steps; a display thread turns the latest of them into text, so the
line keeps moving during a long step, an evaluation or a save. On a terminal it is one Rich live
line; in a log file or a pipe it is one plain line every few seconds and whenever the phase
changes. Nothing here is read back: the record of a run is `events.jsonl`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_SECONDS = 5.0
SMOOTHING = 0.1
"""Weight of the newest step in the running mean of step times, which makes the ETA."""


class Progress:
    """The state shown to the person; the loop writes it, the display thread reads it."""

    def __init__(self, *, steps: int) -> None:
        self.steps = steps
        self.step = 0
        self.phase = "starting"
        self.phase_done = 0
        self.phase_total = 0
        self.loss: float | None = None
        self.samples_per_s = 0.0
        self.tokens_per_s = 0.0
        self.saved_at: float | None = None
        self.step_seconds: float | None = None
        self.stepped_at: float | None = None

    def begin(self, phase: str, *, total: int = 0) -> None:
        """Enter a phase: training, evaluating, saving, ..."""
        self.phase, self.phase_done, self.phase_total = phase, 0, total

    def advance(self) -> None:
        """Count one unit of the current phase."""
        self.phase_done += 1

    def start_at(self, step: int) -> None:
        """Begin a run at this step: 0, or the checkpoint's."""
        self.step = step

    def stepped(self, step: int, *, loss: float, seconds: float, samples: int, tokens: int) -> None:
        """Report a finished optimizer step and what it cost."""
        old = self.step_seconds
        # the first step pays for warm-up, so the mean starts afresh at the second
        new = seconds if old is None or step <= 2 else old + SMOOTHING * (seconds - old)
        self.step, self.loss, self.step_seconds = step, loss, new
        self.samples_per_s, self.tokens_per_s = samples / seconds, tokens / seconds
        self.stepped_at = time.time()

    def saved(self) -> None:
        """Report a finished checkpoint."""
        self.saved_at = time.monotonic()

    def line(self) -> str:
        """The current state as one line of text."""
        parts = [f"step {self.step}/{self.steps}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.step_seconds is not None:
            parts.append(f"ETA {duration((self.steps - self.step) * self.step_seconds)}")
            parts.append(f"{self.samples_per_s:.1f} samples/s {self.tokens_per_s:.0f} tokens/s")
        if self.saved_at is not None:
            parts.append(f"saved {duration(time.monotonic() - self.saved_at)} ago")
        count = f" {self.phase_done}/{self.phase_total}" if self.phase_total else ""
        parts.append(self.phase + count)
        return " | ".join(parts)

    def __rich__(self) -> Text:
        return Text(self.line(), no_wrap=True, overflow="ellipsis")


@contextmanager
def shown(
    progress: Progress, console: Console, *, every_s: float = PLAIN_SECONDS
) -> Iterator[None]:
    """Show the progress until the block ends."""
    if console.is_terminal:
        with Live(progress, console=console, refresh_per_second=4, transient=True):
            yield
        return
    stop = threading.Event()
    thread = threading.Thread(
        target=_print_lines, args=(progress, console, every_s, stop), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _print_lines(
    progress: Progress, console: Console, every_s: float, stop: threading.Event
) -> None:
    shown_phase, shown_at = None, 0.0
    while not stop.wait(min(0.2, every_s)):
        now = time.monotonic()
        if progress.phase != shown_phase or now - shown_at >= every_s:
            shown_phase, shown_at = progress.phase, now
            console.print(progress.line(), soft_wrap=True, highlight=False, markup=False)


def duration(seconds: float) -> str:
    """Seconds as people read them: 42s, 3m10s, 2h05m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
