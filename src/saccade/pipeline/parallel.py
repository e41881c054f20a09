"""Run the stages of a pipeline as local processes, several at a time.

A `Runner` flows in; every stage that is ready becomes `saccade pipeline run FILE --only STAGE`, a
process of its own whose messages go to `runs/PIPELINE/logs/STAGE.log` and whose error comes back
through a pipe. A stop request is passed on to all of them, once; they save and this process leaves
with 143. After a failure nothing new is started, and what runs is waited for. Each child leaves
when this process is gone.
"""

from __future__ import annotations

import graphlib
import json
import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.config.errors import Preempted, SaccadeError, of_exit_code
from saccade.pipeline.execute import Runner, environment
from saccade.pipeline.programs import SACCADE
from saccade.pipeline.stage_state import Record
from saccade.pipeline.stages import StageFailed
from saccade.training.progress import duration

POLL_SECONDS = 0.05
LONGEST_ANSWER = 1 << 16


@dataclass
class Child:
    """One stage in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    said: bytes = b""

    def listen(self) -> None:
        """Keep the end of what it has written to stdout so far; never waits for more."""
        assert self.process.stdout is not None
        with suppress(BlockingIOError):
            while more := os.read(self.process.stdout.fileno(), LONGEST_ANSWER):
                self.said = (self.said + more)[-LONGEST_ANSWER:]

    def end(self) -> dict[str, Any]:
        """Wait for the process, which is ending; returns the last line it wrote, its error."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.listen()
        self.process.stdout.close()
        with suppress(ValueError, IndexError):
            answer = json.loads(self.said.splitlines()[-1])
            return answer if isinstance(answer, dict) else {}
        return {}


@dataclass
class _Parallel:
    """The stages that run now, those that are ready, and the first error."""

    runner: Runner
    limit: int
    file: str
    running: dict[str, Child] = field(default_factory=dict)
    error: SaccadeError | None = None
    told: bool = False

    def run(self) -> None:
        """Start what is ready, collect what ends, until nothing is left or something failed."""
        sorter = graphlib.TopologicalSorter(self.runner.plan.pipeline.graph())
        sorter.prepare()
        ready: list[str] = []
        try:
            while True:
                ready += sorter.get_ready() if sorter.is_active() else ()
                self._start(ready, sorter)
                self._collect(sorter)
                if not self.running and (self._closing() or not sorter.is_active()):
                    break
                self._pass_on_stop()
                time.sleep(POLL_SECONDS if self.running else 0)
        finally:
            self._kill()
        if self.runner.stop:
            raise Preempted("stopped; the same command continues where it was")
        if self.error is not None:
            raise self.error

    def _closing(self) -> bool:
        return self.error is not None or bool(self.runner.stop)

    def _start(self, ready: list[str], sorter: graphlib.TopologicalSorter[str]) -> None:
        while ready and len(self.running) < self.limit and not self._closing():
            name = ready.pop(0)
            stage = self.runner.plan.stage(name)
            self.runner.discard(stage)
            record = self.runner.finished(stage)
            if record is None:
                self.running[name] = self._child(name)
                self.runner.say(f"{name}: started (messages: {self.running[name].log})")
                continue
            self.runner.say(f"{name}: finished before")
            self._settle(name, record, sorter)

    def _settle(
        self, name: str, record: Record | None, sorter: graphlib.TopologicalSorter[str]
    ) -> None:
        runner, stage = self.runner, self.runner.plan.stage(name)
        try:
            if record is None:
                raise StageFailed(f"{name}: its artifacts are damaged; run the same command again")
            runner.settle(stage, record)
        except SaccadeError as error:
            self.error = self.error or error
            return
        sorter.done(name)

    def _child(self, name: str) -> Child:
        log = self.runner.plan.root / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [*SACCADE, "pipeline", "run", self.file]
        words += [*self.runner.plan.overrides, "--only", name, "--json", "--attached"]
        with log.open("a", encoding="utf-8") as messages:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,  # the child leaves when this closes
                stdout=subprocess.PIPE,  # no file: a full disk must not silence an error
                stderr=messages,
                env=environment(self.runner.plan.stage(name)),
                process_group=0,  # Ctrl+C comes here first; it is passed on once, as SIGTERM
            )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self.runner.stop.on_exit = self._kill
        return Child(process, log)

    def _collect(self, sorter: graphlib.TopologicalSorter[str]) -> None:
        for name, child in list(self.running.items()):
            code = child.process.poll()
            child.listen()
            if code is None:
                continue
            del self.running[name]
            answer = child.end()
            if code == 0:
                self.runner.ran.append(name)
                record = self.runner.finished(self.runner.plan.stage(name))
                self._settle(name, record, sorter)
                if name in self.runner.records:
                    seconds = self.runner.records[name].seconds
                    self.runner.say(f"{name}: done in {duration(seconds)}")
            elif not self.runner.stop:
                self.error = self.error or failure_of(name, child, code, answer)
                if len(self.running):
                    self.runner.say(f"{name}: failed; waiting for {', '.join(self.running)}")

    def _pass_on_stop(self) -> None:
        if self.runner.stop and not self.told:
            self.told = True
            for child in self.running.values():
                child.process.terminate()

    def _kill(self) -> None:
        for child in self.running.values():
            child.process.kill()
            child.end()


def run_in_parallel(runner: Runner, *, limit: int, file: str) -> None:
    """Run the pipeline with at most `limit` stages at a time; `file` is how it was named."""
    _Parallel(runner, limit, file).run()


def failure_of(name: str, child: Child, code: int, answer: dict[str, Any]) -> SaccadeError:
    """The error a child ended with, as it would have been raised in this process.

    What it answered counts more than how it ended: on a full disk it may not even get as far as
    leaving with its own exit code.
    """
    kind = of_exit_code(answer.get("exit_code", code)) or StageFailed
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    text = answer.get("error", f"{name}: its process {how}")
    return kind(f"{text}\n  messages: {child.log}")
