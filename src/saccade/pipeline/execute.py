"""Run a pipeline: skip what is finished, continue what was interrupted, stop at a closed gate.

A `Plan` flows in; records, artifacts and run directories flow out. Stages run one after another in
this process; `parallel.py` runs them as processes of their own, each through `Runner.run` here.
Every step can be killed: a stage is finished when its record is written, which is last; until then
its folder stays and the same function is called again with it. Left out: what a stage does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from saccade.config.errors import FULL, InputError, OutsideError, Preempted, SaccadeError
from saccade.evaluation.load import Progress
from saccade.pipeline.artifacts import DamagedArtifact
from saccade.pipeline.graph import Stage
from saccade.pipeline.mirror import mirror_version
from saccade.pipeline.plan import (
    Plan,
    command_places,
    filled,
    filled_layer,
    kind_of,
    resolve_reference,
)
from saccade.pipeline.programs import own_environment, own_programs
from saccade.pipeline.stage_state import (
    FAILED,
    Lock,
    Record,
    Stored,
    lock_of,
    note_failure,
    set_aside,
    spent_seconds,
    timed,
)
from saccade.pipeline.stages import StageContext, StageFailed, StageResult
from saccade.pipeline.targets import run_on_target
from saccade.training.guards import StopRequest
from saccade.training.progress import duration

SECONDS_PER_HOUR = 3600.0


class GateClosed(SaccadeError):
    """A metric of a finished stage does not keep its bound."""


@dataclass
class Runner:
    """One call of `saccade pipeline run`: the plan, who is told what, and what is known so far."""

    plan: Plan
    stop: StopRequest
    say: Callable[[str], None]
    progress: Progress
    console: Console
    records: dict[str, Record] = field(default_factory=dict)
    forced: set[str] = field(default_factory=set)
    ran: list[str] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    def digests(self, stage: Stage) -> dict[str, str]:
        """Content of every input; all stages it needs must have a record."""
        found = {}
        for name, one in stage.inputs.items():
            if one.kind == "stage":
                found[name] = self.records[one.stage].outputs[one.output].digest
            else:
                found[name] = resolve_reference(self.plan, one)
        return found

    def folder(self, stage: Stage, *, digests: Mapping[str, str] | None = None) -> tuple[Path, str]:
        """The stage's folder and its key."""
        key = self.plan.key(stage, self.digests(stage) if digests is None else digests)
        return self.plan.folder(stage.name, key), key

    def finished(self, stage: Stage) -> Record | None:
        """The record of a finished stage whose artifacts are all whole."""
        return self._whole(stage, *self.folder(stage))

    def _whole(self, stage: Stage, folder: Path, key: str) -> Record | None:
        record = Record.read(folder, key=key)
        if record is None:
            return None
        for output in record.outputs.values():
            fault = self.plan.store.fault(output.digest)
            if fault:
                self._tell_damage(stage, f"{output.name}:v{output.version}", fault)
                return None
        return record

    def _tell_damage(self, stage: Stage, version: str, fault: str) -> None:
        if stage.name not in self.told:
            self.told.add(stage.name)
            self.say(
                f"{stage.name}: the artifact {version} is damaged ({fault}); the stage runs again"
            )

    def settle(self, stage: Stage, record: Record) -> None:
        """Take a finished stage into account; raises GateClosed when a bound is not kept."""
        self.records[stage.name] = record
        check_gates(stage, record)

    def discard(self, stage: Stage) -> None:
        """Put away what a stage that is asked to run again has made; once a call."""
        if stage.name in self.forced:
            folder, _ = self.folder(stage)
            with self._lock(stage, lock_of(folder)):
                set_aside(folder)
            self.forced.discard(stage.name)

    def run(self, stage: Stage) -> Record:
        """Run one stage to its record, or pick up what another process finished meanwhile."""
        # looked at once: an alias may move, and what is read must be what the key says
        digests = self.digests(stage)
        folder, key = self.folder(stage, digests=digests)
        with self._lock(stage, lock_of(folder)) as descriptor:
            record = self._whole(stage, folder, key)
            if record is not None:
                return record
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FAILED).unlink(missing_ok=True)
            try:
                with _full_disk_is_named(folder):
                    return self._work(stage, folder, key, digests, descriptor)
            except Preempted:
                raise
            except Exception as error:
                note_failure(folder, error)
                raise

    @contextmanager
    def _lock(self, stage: Stage, lock: Lock) -> Any:
        def waiting(pid: str) -> None:
            self.say(f"{stage.name}: another process (pid {pid or 'unknown'}) works on it; waiting")

        # a lock file holds a few bytes: on a full disk not even those can be written
        with _full_disk_is_named(lock.path), lock.held(stop=self.stop, waiting=waiting) as held:
            yield held

    def _work(
        self, stage: Stage, folder: Path, key: str, digests: Mapping[str, str], descriptor: int
    ) -> Record:
        with timed(folder):
            inputs = self._fetch(stage, folder, digests)
            result = self._attempts(stage, self._context(stage, folder, inputs, descriptor))
        seconds = round(spent_seconds(folder), 3)
        rate = stage.resources.usd_per_hour
        record = Record(
            stage=stage.name,
            key=key,
            inputs=dict(digests),
            outputs=self._store(stage, result, key=key, digests=digests),
            metrics=dict(result.metrics),
            seconds=seconds,
            cost_usd=None if rate is None else round(rate * seconds / SECONDS_PER_HOUR, 6),
            time=round(time.time(), 3),
        )
        record.write(folder)
        self.ran.append(stage.name)
        return record

    def _fetch(self, stage: Stage, folder: Path, digests: Mapping[str, str]) -> dict[str, Path]:
        """Bring the inputs into the stage's own folder, each file checked."""
        found = {}
        for name, one in stage.inputs.items():
            if one.kind == "file":
                found[name] = Path(one.path)
                continue
            try:
                found[name] = self.plan.store.fetch(digests[name], to=folder / "inputs" / name)
            except DamagedArtifact as error:
                raise DamagedArtifact(
                    f"{one.where}: {stage.name} cannot read {one.text}: {error}"
                    "\n  fix: run the same command again; what is damaged is made anew"
                ) from error
        return found

    def _context(
        self, stage: Stage, folder: Path, inputs: dict[str, Path], descriptor: int
    ) -> StageContext:
        texts = {name: str(path) for name, path in inputs.items()}
        outputs = {}
        if kind_of(stage).has_command:
            outputs = {name: folder / "outputs" / name for name in stage.outputs}
        places = command_places(inputs=inputs, outputs=outputs, folder=folder)
        return StageContext(
            stage=stage,
            folder=folder,
            inputs=inputs,
            stop=self.stop,
            say=self.say,
            progress=self.progress,
            console=self.console,
            resolved=self.plan.resolved(stage, inputs=texts, run=folder.name),
            layer=filled_layer(stage, texts),
            command=tuple(own_programs(filled(list(stage.command), places))),
            outputs=outputs,
            env=environment(stage),
            lock_fd=descriptor,
        )

    def _attempts(self, stage: Stage, context: StageContext) -> StageResult:
        work = kind_of(stage).work if stage.target.value == "local" else run_on_target
        for left in range(stage.retries, -1, -1):
            try:
                return work(context)
            except (InputError, Preempted):
                raise
            except Exception as error:
                if not left:
                    raise
                self.say(f"{stage.name}: {error}; trying again ({left} more)")
        raise AssertionError("unreachable")

    def _store(
        self, stage: Stage, result: StageResult, *, key: str, digests: Mapping[str, str]
    ) -> dict[str, Stored]:
        lineage = {
            "pipeline": self.plan.pipeline.name,
            "file": str(self.plan.pipeline.path),
            "stage": stage.name,
            "key": key,
            "inputs": {
                name: {"from": stage.inputs[name].text, "digest": digest}
                for name, digest in digests.items()
            },
        }
        stored = {}
        for name, output in stage.outputs.items():
            path = result.outputs.get(name)
            if path is None or not path.exists():
                raise StageFailed(
                    f"{output.where}: {stage.name} has not written its output {name} ({path})"
                    "\n  fix: let it write there, or take the output out of the file"
                )
            version = self.plan.store.put(
                output.name, path, lineage=lineage, metrics=result.metrics, best=output.best,
                leave_out=kind_of(stage).leave_out.get(name, ()),
            )  # fmt: skip
            stored[name] = Stored(version.name, version.version, version.digest, version.bytes)
            if self.plan.pipeline.mirror:
                mirror_version(version, path, root=self.plan.root, say=self.say)
        return stored


def run_serially(runner: Runner) -> None:
    """Every stage after those it needs, one at a time, in this process."""
    for name in runner.plan.pipeline.order():
        stage = runner.plan.stage(name)
        if runner.stop:
            raise Preempted("stopped; the same command continues where it was")
        runner.discard(stage)
        record = runner.finished(stage)
        if record is not None:
            runner.say(f"{name}: finished before")
        else:
            runner.say(f"{name}: {kind_of(stage).about}")
            record = runner.run(stage)
            runner.say(f"{name}: done in {duration(record.seconds)}")
        runner.settle(stage, record)


def run_only(runner: Runner, name: str) -> None:
    """One stage; raises InputError when something it needs is not finished."""
    wanted = runner.plan.pipeline.order()
    for before in [one for one in wanted if name in runner.plan.pipeline.descendants(one)]:
        stage = runner.plan.stage(before)
        if before == name:
            runner.settle(stage, runner.run(stage))
            return
        folder, key = runner.folder(stage)
        record = Record.read(folder, key=key)
        if record is None:
            raise InputError(
                f"{stage.where}: {name} needs {before}, which is not finished"
                f"\n  fix: run the pipeline without --only"
            )
        runner.settle(stage, record)


def check_gates(stage: Stage, record: Record) -> None:
    """Raise GateClosed when a bound is not kept."""
    for gate in stage.gates:
        fault = gate.fault(record.metrics)
        if fault:
            raise GateClosed(
                f"{gate.where}: the gate of {stage.name} is closed: {fault}"
                "\n  fix: improve what comes before it, or change the gate"
                " (nothing that is finished runs again)"
            )


def environment(stage: Stage) -> dict[str, str]:
    """The environment of programs a stage starts: saccade importable, its share of the cores."""
    env = own_environment()
    if stage.resources.cpus:
        env["OMP_NUM_THREADS"] = str(stage.resources.cpus)
    return env


@contextmanager
def _full_disk_is_named(folder: Path) -> Any:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OutsideError(
            f"{folder}: no space left ({error.strerror}); what is finished is intact"
            "\n  fix: free some disk space, then run the same command to continue"
        ) from error
