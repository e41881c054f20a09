"""`saccade sweep`: trials drawn by Optuna, each an ordinary run in a process of its own.

A `SweepFile` and a configuration flow in; `runs/SWEEP/trial-N/` (ordinary runs), `sweep.json` and
figures flow out. A trial's reports are read from its event log as they come; one that is to be
stopped gets a SIGTERM. The same command continues after Ctrl+C, a kill or a lost machine: finished
trials stay, a trial that was running is taken up again from its checkpoint. Several such commands
may work on one sweep; a lock on each trial's folder, which its program inherits, keeps them apart.
Left out: what is drawn and what is stopped (`sweep_study.py`).
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import OutsideError, Preempted, SaccadeError
from saccade.pipeline.programs import not_started
from saccade.pipeline.stage_state import taken
from saccade.pipeline.sweep_plan import SweepPlan
from saccade.pipeline.sweep_report import summarise, write_summary
from saccade.pipeline.sweep_study import Study, lost_database_is_named
from saccade.pipeline.sweep_trial import (
    Reports,
    cancel_words,
    final_value,
    prepare_trial,
)
from saccade.training.guards import StopRequest

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

POLL_SECONDS = 0.05
WAITING_SECONDS = 0.5
"""How often to look whether a trial of another process has ended."""
PATIENCE_SECONDS = 120.0
"""How long a program may take to save itself after a SIGTERM."""
ATTEMPTS = 3
"""How often a trial whose process was killed is started before it counts as failed."""
FAILURES = 3
"""After so many failed trials, and no good one, the sweep gives up."""


@dataclass
class Child:
    """One trial in a process of its own; `lock` is held until it is settled."""

    trial_id: int
    number: int
    process: subprocess.Popen[bytes]
    lock: int
    reports: Reports
    started: float
    told_at: float | None = None
    stopped: bool = False


@dataclass
class SweepRunner:
    """The trials that run here, and everything needed to start the next."""

    plan: SweepPlan
    study: Study
    stop: StopRequest
    say: Callable[[str], None]
    limit: int
    running: dict[int, Child] = field(default_factory=dict)
    orphans: dict[int, float] = field(default_factory=dict)
    error: SaccadeError | None = None
    waiting: bool = False

    def run(self) -> None:
        """Start, watch and settle trials until none is left or something is wrong."""
        self.stop.on_exit = self._kill
        try:
            while True:
                self.waiting = False
                nothing_left = self._start()
                self._watch()
                if not self.running and (self._closing() or (nothing_left and not self.waiting)):
                    break
                time.sleep(POLL_SECONDS if self.running else WAITING_SECONDS)
        finally:
            self._kill()
        if self.stop:
            raise Preempted("stopped; the same command continues where it was")
        if self.error is not None:
            raise self.error

    def _closing(self) -> bool:
        return self.error is not None or bool(self.stop)

    def _start(self) -> bool:
        """Fill the free places; True when there was nothing to fill them with."""
        while len(self.running) < self.limit and not self._closing():
            with locked(self.plan.folder / ".sweep"):
                found = self._take_up() or self._draw()
            if found is None:
                return True
            self._launch(*found)
        return False

    def _take_up(self) -> tuple[FrozenTrial, int] | None:
        """A trial that nobody runs any more; orphaned programs are asked to save and leave."""
        for trial in self.study.running_here():
            if trial.number in self.running:
                continue
            lock = try_lock(self.plan.lock_file(trial.number))
            if lock is None:
                self.waiting = True
                self._end_orphan(trial.number)
            elif self.study.get(trial._trial_id).state.name == "RUNNING":
                self.say(f"trial {trial.number}: taken up again")
                return trial, lock
            else:  # settled by its owner between the two looks
                os.close(lock)
        return None

    def _draw(self) -> tuple[FrozenTrial, int] | None:
        if len(self.study.asked()) >= self.plan.trials:
            return None
        trial = self.study.ask()
        lock = try_lock(self.plan.lock_file(trial.number))
        assert lock is not None  # nobody else knows this trial yet
        return trial, lock

    def _launch(self, trial: FrozenTrial, lock: int) -> None:
        values = self.study.values(trial)
        job = prepare_trial(self.plan, number=trial.number, values=values)
        reports = Reports(job.reports_file, metric=self.plan.sweep.metric, events=job.events)
        attempts = trial.user_attrs.get("attempts", 0) + 1
        self.study.note(trial._trial_id, attempts=attempts)
        with (job.folder / "log.txt").open("ab") as messages:
            try:
                process = subprocess.Popen(
                    job.words,
                    stdin=subprocess.DEVNULL,
                    stdout=messages,
                    stderr=messages,
                    env=job.env | _threads(self.limit),
                    pass_fds=(lock,),  # an orphan of a killed sweep keeps others out
                    process_group=0,  # Ctrl+C comes here first; it is passed on once, as SIGTERM
                )
            except OSError as error:
                os.close(lock)
                where = self.plan.sweep.place("command")
                self.error = not_started(error, where=where, program=job.words[0])
                return
        os.pwrite(lock, f"{os.getpid()} {process.pid}".ljust(40).encode(), 0)
        self.running[trial.number] = Child(
            trial._trial_id, trial.number, process, lock, reports, time.monotonic()
        )
        if attempts == 1:
            self.say(f"trial {trial.number}: {settings_text(self.plan, values)}")

    def _watch(self) -> None:
        for child in list(self.running.values()):
            code = child.process.poll()  # before reading: what it wrote last is read below
            self._pass_on_stop(child)
            self._read(child)
            if code is None:
                self._lose_patience(child)
                continue
            del self.running[child.number]
            try:
                self._settle(child, code)
            finally:
                os.close(child.lock)

    def _read(self, child: Child) -> None:
        for number, value in child.reports.new():
            final = self.plan.reports is not None and number >= self.plan.reports
            stop = self.study.report(child.trial_id, number=number, value=value, final=final)
            if stop and not child.stopped:
                child.stopped = True
                self._tell(child)

    def _pass_on_stop(self, child: Child) -> None:
        if self.stop and child.told_at is None:
            self._tell(child)

    def _tell(self, child: Child) -> None:
        child.told_at = child.told_at or time.monotonic()
        child.process.terminate()

    def _lose_patience(self, child: Child) -> None:
        if child.told_at is not None and time.monotonic() - child.told_at > PATIENCE_SECONDS:
            child.process.kill()

    def _settle(self, child: Child, code: int) -> None:
        trial, seconds = self.study.get(child.trial_id), time.monotonic() - child.started
        before = trial.user_attrs.get("seconds", 0.0)
        self.study.note(child.trial_id, seconds=round(before + seconds, 2))
        name = f"trial {child.number}"
        if code == 0:
            value = final_value(self.plan, number=child.number, reports=child.reports)
            self.study.tell(child.trial_id, state="COMPLETE", value=value)
            shown = "no value" if value is None else f"{self.plan.sweep.metric} {value:.4g}"
            self.say(f"{name}: {shown} after {len(child.reports)} report(s)")
        elif child.stopped:
            self._cancel(child)
            self.study.tell(child.trial_id, state="PRUNED")
            self.say(f"{name}: stopped after {len(child.reports)} report(s)")
        elif self.stop:
            return
        elif self._interrupted(code) and trial.user_attrs.get("attempts", 1) < ATTEMPTS:
            self.say(f"{name}: its process was ended ({code}); it is started again")
        elif code == OutsideError.exit_code and not self.plan.sweep.command:
            log = self.plan.trial_folder(child.number) / "log.txt"
            self.error = OutsideError(f"{name}: {tail(log)}\n  messages: {log}")
        else:
            self._fail(child, code)
        self._write()

    def _interrupted(self, code: int) -> bool:
        return code < 0 or code == Preempted.exit_code

    def _fail(self, child: Child, code: int) -> None:
        self.study.tell(child.trial_id, state="FAIL")
        log = self.plan.trial_folder(child.number) / "log.txt"
        self.say(f"trial {child.number}: failed with {code}: {tail(log)}")
        states = [one.state.name for one in self.study.trials()]
        good = {"COMPLETE", "PRUNED"} & set(states)
        if states.count("FAIL") >= FAILURES and not good:
            self.error = SaccadeError(
                f"{self.plan.sweep.shown}: the first {FAILURES} trials failed: {tail(log)}"
                f"\n  messages: {log}"
            )

    def _cancel(self, child: Child) -> None:
        """A trial on a launch target goes on without the process that watched it: end it."""
        words = cancel_words(self.plan, number=child.number)
        if words:
            subprocess.run(words, check=False, stdin=subprocess.DEVNULL, capture_output=True)

    def _end_orphan(self, number: int) -> None:
        """A program whose sweep was killed: SIGTERM, so that it saves; SIGKILL when it stays."""
        owner, program = lock_holders(self.plan.lock_file(number))
        if program is None or (owner is not None and is_alive(owner)):
            return
        first = self.orphans.setdefault(program, time.monotonic())
        with suppress(ProcessLookupError, PermissionError):
            if time.monotonic() - first > PATIENCE_SECONDS:
                os.kill(program, signal.SIGKILL)
            elif time.monotonic() - first < WAITING_SECONDS:
                os.kill(program, signal.SIGTERM)

    def _write(self) -> None:
        write_summary(summarise(self.plan, self.study), folder=self.plan.folder)

    def _kill(self) -> None:
        for child in self.running.values():
            child.process.kill()
            child.process.wait()


def run_sweep(
    plan: SweepPlan, *, limit: int, say: Callable[[str], None], stop: StopRequest
) -> dict[str, Any]:
    """Run what is missing; returns the summary of everything finished.

    Raises Preempted (143) after a stop request, and what a trial says is missing outside.
    """
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutsideError(
            f"{plan.folder}: cannot be made ({error.strerror or error})"
            "\n  fix: free or unlock the folder, or choose another with run.root=FOLDER"
        ) from error
    with lost_database_is_named(plan.sweep.shown if plan.sweep.storage else str(plan.folder)):
        with locked(plan.folder / ".sweep"):
            study = Study(plan.sweep, folder=plan.folder, home=home_of(plan.folder), key=plan.key)
            if plan.sweep.method == "grid":
                study.fill_grid()
        SweepRunner(plan, study, stop, say, limit).run()
        summary = summarise(plan, study, importance=True)
    write_summary(summary, folder=plan.folder)
    return summary


def home_of(folder: Path) -> str:
    """Names this machine and folder: who may take a trial up again."""
    return f"{socket.gethostname()}:{folder.resolve()}"


def settings_text(plan: SweepPlan, values: Mapping[str, Any]) -> str:
    """A trial's drawn values in one line."""
    drawn: Sequence[str] = [one.key for one in plan.sweep.parameters if not one.constant]
    shown = (values[key] for key in drawn)
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in zip(drawn, shown, strict=True)
    )


def try_lock(path: Path) -> int | None:
    """Take a trial's lock; its descriptor, or None when another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if not taken(descriptor):
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)  # the processes it named are gone
    return descriptor


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the sweep's own lock for a moment."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lock_holders(path: Path) -> tuple[int | None, int | None]:
    """The processes that a trial's lock names: the sweep and the trial's program."""
    numbers = [int(word) for word in path.read_text("utf-8").split() if word.isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (None, None)


def is_alive(pid: int) -> bool:
    """Whether a process with this number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def tail(log: Path) -> str:
    """The error a trial ended with, all its lines, or the last thing it said."""
    lines = log.read_text("utf-8", errors="replace").splitlines()
    errors = [at for at, line in enumerate(lines) if line.startswith("error: ")]
    if errors:
        return "\n".join(lines[errors[-1] :]).removeprefix("error: ")
    return next((line for line in reversed(lines) if line.strip()), "it wrote nothing")


def _threads(limit: int) -> dict[str, str]:
    if limit == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // limit, 1))}
