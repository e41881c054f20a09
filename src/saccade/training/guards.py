"""What stops a run early: requests to stop, and numbers that are no longer numbers.

Signals flow in and become a flag that the loop polls at step boundaries and between evaluation
samples; the flag flows out as `Preempted` (exit 143) once everything is saved. Non-finite losses
and gradients become `TrainingDiverged`, which names the step, the samples and the last good
checkpoint. Saving itself is the loop's business.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from saccade.config.errors import Preempted, SaccadeError
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource


class TrainingDiverged(SaccadeError):
    """The loss or the gradient stopped being finite.

    Exit code 1: neither a typing mistake nor something missing outside, but the message is for
    the user, without a traceback.
    """


class EvaluationStopped(Exception):
    """Raised between two samples of an evaluation when a stop was asked for; never escapes."""


class StopRequest:
    """A flag set by SIGTERM or the first Ctrl+C; the second Ctrl+C leaves at once."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.on_exit: Callable[[], object] = lambda: None

    def __bool__(self) -> bool:
        return self.reason is not None

    @contextmanager
    def watching(self) -> Iterator[StopRequest]:
        """Install the handlers, and put the previous ones back at the end."""
        if threading.current_thread() is not threading.main_thread():
            # signals belong to the main thread; a run inside a thread is stopped by its owner
            yield self
            return
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._handle) for number in signals}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            self.on_exit()
            os._exit(Preempted.exit_code)
        self.reason = self.reason or signal.Signals(number).name


class StoppableSource:
    """A sample source that reports each read and refuses the next one after a stop request.

    Evaluation reads its samples through this, so every recipe is interruptible and shows
    progress without knowing about either.
    """

    def __init__(
        self, source: SampleSource, *, stop: Callable[[], bool], on_read: Callable[[], None]
    ) -> None:
        self.source = source
        self.stop = stop
        self.on_read = on_read

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int, /) -> Sample:
        if self.stop():
            raise EvaluationStopped
        self.on_read()
        return self.source[position]

    def groups(self) -> list[list[int]]:
        """The wrapped source's groups."""
        return self.source.groups()

    def fingerprint(self) -> str:
        """The wrapped source's fingerprint."""
        return self.source.fingerprint()


def unwrapped(source: SampleSource) -> SampleSource:
    """The source itself, where an evaluation may read it through another."""
    return source.source if isinstance(source, StoppableSource) else source


def check_finite(
    *, step: int, loss: float, grad_norm: float, sample_ids: Sequence[str], good: Path | None
) -> None:
    """Raise TrainingDiverged before a non-finite gradient can reach the weights."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {grad_norm}"
    saved = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
    raise TrainingDiverged(
        f"step {step}: the {what}; nothing was updated and {saved}"
        f"\n  samples of this step: {', '.join(sample_ids)}"
        "\n  fix: look at these samples (`saccade data check`), lower training.learning_rate or"
        " training.max_grad_norm, then start another run with run.name=NAME"
    )
