"""What happens between two optimizer steps: record, judge, save, evaluate, stop.

The trainer hands over each finished step as a `StepRecord`; events, progress, sinks and
checkpoints flow out. The order is fixed: the step is recorded, then saved, then evaluated, then a
request to stop is honoured, so whatever interrupts an evaluation finds the weights already on
disk. The arithmetic of a step is the trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from saccade.config.errors import Preempted
from saccade.config.schema import Config
from saccade.data.sources import SampleSource
from saccade.training.checkpoints import Written
from saccade.training.events import EventLog, SilentLog, read_events, step_series
from saccade.training.gradients import GroupReport
from saccade.training.guards import EvaluationStopped, StoppableSource, StopRequest
from saccade.training.progress import Progress
from saccade.training.rundir import RunDir
from saccade.training.state import untouched_randomness
from saccade.training.tracking import Sink
from saccade.training.uploads import NoUploads

Evaluate = Callable[[SampleSource], dict[str, float]]


@dataclass(frozen=True)
class StepRecord:
    """One finished optimizer step, summed over micro-batches and processes."""

    step: int
    loss: float
    metrics: dict[str, float]
    learning_rate: float
    grad_norm: float
    seconds: float
    tokens: int
    sample_ids: list[str]
    kept: int = 0
    """Samples computed with, where a recipe keeps them over steps and `sample_ids` are the new."""

    @property
    def samples(self) -> int:
        """Samples seen in this step."""
        return self.kept or len(self.sample_ids)


@dataclass
class Watchers:
    """Everything that hears about a run; silent versions stand in on processes but the first."""

    log: EventLog | SilentLog
    progress: Progress
    sink: Sink
    say: Callable[[str], None]
    uploads: NoUploads = field(default_factory=NoUploads)
    warned: set[str] = field(default_factory=set)

    def warn(self, message: str) -> None:
        """Tell the person and the log, once per message."""
        if message not in self.warned:
            self.warned.add(message)
            self.say(f"warning: {message}")
            self.log.append("warning", message=message)

    def note_uploads(self) -> None:
        """Write down what became of uploads since the last call; failures are also warned of."""
        for report in self.uploads.reports():
            self.log.append(report.type, **report.fields)
            if report.type == "upload_failed":
                step, why = report.fields["step"], report.fields["message"]
                self.warn(f"step {step} was not uploaded: {why}")


class Saver(Protocol):
    """The part of the trainer that the boundary calls."""

    def save(self) -> Written | None: ...

    def agree(self, flag: bool) -> bool: ...


class Boundary:
    """Runs at every step boundary of one training process."""

    def __init__(
        self,
        config: Config,
        *,
        run: RunDir,
        watchers: Watchers,
        stop: StopRequest,
        eval_source: Callable[[], SampleSource],
        evaluate: Evaluate,
        evaluates: bool,
    ) -> None:
        self.training = config.training
        self.run = run
        self.watchers = watchers
        self.stop = stop
        self.eval_source = eval_source
        self.evaluate_with = evaluate
        self.evaluates = evaluates
        self.agree: Callable[[bool], bool] = bool
        """Whether a request to stop counts; several processes that evaluate together decide it."""
        self.last_good: Path | None = None
        self.saved_step = 0

    def begin(self, trainer: Saver, *, step: int, checkpoint: Path | None) -> None:
        """Take up the run at this step; an evaluation that was cut short is made up for."""
        self.last_good, self.saved_step = checkpoint, step
        self.watchers.progress.start_at(step)
        if step and self._evaluation_due(step) and self.evaluation_at(step) is None:
            self.evaluate(step)
        self._honour_stop(trainer, step=step)
        self.watchers.progress.begin("training")

    def finished(
        self, trainer: Saver, record: StepRecord, *, gradients: dict[str, GroupReport]
    ) -> None:
        """Record a step, then save, evaluate and stop as due; raises Preempted to stop."""
        self._record(record, gradients)
        self.watchers.note_uploads()
        step = record.step
        if step % self.training.save_every == 0 or step == self.training.steps:
            self.save(trainer, step=step)
        if step < self.training.steps and self._evaluation_due(step):
            self.evaluate(step)
        self._honour_stop(trainer, step=step)
        self.watchers.progress.begin("training")

    def save(self, trainer: Saver, *, step: int) -> None:
        """Save this step unless it is saved already."""
        if self.saved_step == step:
            return
        self.watchers.progress.begin("saving")
        started = time.perf_counter()
        written = trainer.save()
        self.saved_step = step
        if written is None:  # not the process that writes
            return
        self.last_good = written.folder
        seconds = round(time.perf_counter() - started, 4)
        self.watchers.progress.saved()
        self.watchers.log.append("checkpoint", step=step, seconds=seconds, bytes=written.bytes)
        self.watchers.uploads.submit(written.folder, step=step)

    def evaluate(self, step: int) -> dict[str, float] | None:
        """Evaluate on the first process; None elsewhere and when a stop cut it short."""
        if not self.evaluates:
            return None
        progress = self.watchers.progress
        source = self.eval_source()
        progress.begin("evaluating", total=min(self.training.eval_samples, len(source)))
        watched = StoppableSource(
            source, stop=lambda: self.agree(bool(self.stop)), on_read=progress.advance
        )
        try:
            with untouched_randomness():
                metrics = self.evaluate_with(watched)
        except EvaluationStopped:
            return None
        self.watchers.log.append("eval", step=step, metrics=metrics)
        self.watchers.sink.log({f"eval/{name}": one for name, one in metrics.items()}, step=step)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.watchers.say(f"step {step}: {shown}")
        return metrics

    def evaluation_at(self, step: int) -> dict[str, float] | None:
        """The metrics an earlier process of this run already measured at this step."""
        series = step_series(read_events(self.run.events_file), type="eval")
        return next((event["metrics"] for event in series if event["step"] == step), None)

    def preempt(self, *, step: int) -> Preempted:
        """Log that the run stops here, and make the exception that says so."""
        self.watchers.log.append("preempted", step=step)
        reason = self.stop.reason or "another process"
        return Preempted(
            f"{self.run.path}: stopped by {reason} at step {step} of {self.training.steps}"
            "; everything is saved\n  to continue: run the same command"
        )

    def _honour_stop(self, trainer: Saver, *, step: int) -> None:
        if trainer.agree(bool(self.stop)):
            self.save(trainer, step=step)
            raise self.preempt(step=step)

    def _evaluation_due(self, step: int) -> bool:
        every = self.training.eval_every
        return every > 0 and step % every == 0

    def _record(self, record: StepRecord, gradients: dict[str, GroupReport]) -> None:
        watchers, step = self.watchers, record.step
        watchers.progress.stepped(
            step, loss=record.loss, seconds=record.seconds, samples=record.samples,
            tokens=record.tokens,
        )  # fmt: skip
        if gradients:
            groups = {name: report.as_dict() for name, report in gradients.items()}
            watchers.log.append("gradients", step=step, groups=groups)
        if step % self.training.log_every and step != self.training.steps:
            return
        watchers.log.append(
            "step",
            step=step,
            loss=record.loss,
            metrics=record.metrics,
            learning_rate=record.learning_rate,
            grad_norm=record.grad_norm,
            samples_per_s=round(record.samples / record.seconds, 2),
            tokens_per_s=round(record.tokens / record.seconds, 1),
            sample_ids=record.sample_ids,
        )
        scalars = {"loss": record.loss, "learning_rate": record.learning_rate, **record.metrics}
        watchers.sink.log(scalars | {"grad_norm": record.grad_norm}, step=step)
