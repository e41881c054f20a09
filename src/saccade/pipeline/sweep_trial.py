"""One trial of a sweep: the program that runs it, and the reports it makes while it runs.

A plan and a trial's values flow in; words, environment and files flow out. An ordinary trial is
`saccade train` (or `saccade launch`, for a target, which brings the run and its log into the
trial's folder) and reports through its `events.jsonl`; a trial of a sweep with a `command` appends
lines such as `{"step": 3, "accuracy": 0.8}` to `${reports}`. Left out: starting and stopping it
(`sweep.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.config.resolve import to_yaml
from saccade.pipeline.programs import SACCADE, own_environment, own_programs
from saccade.pipeline.sweep_plan import SweepPlan, filled_command
from saccade.pipeline.targets import launch_words
from saccade.training.rundir import RunDir, write_atomically


@dataclass(frozen=True)
class TrialJob:
    """What starts a trial, and where it reports."""

    folder: Path
    words: list[str]
    env: dict[str, str]
    reports_file: Path
    events: bool


@dataclass
class Reports:
    """The reports of one trial, read as they are written; repeated steps count once."""

    file: Path
    metric: str
    events: bool = True
    found: dict[float, float] = field(default_factory=dict)
    offset: int = 0
    told: int = 0

    def __len__(self) -> int:
        return len(self.found)

    @property
    def last(self) -> float | None:
        """The value at the largest step."""
        return self.found[max(self.found)] if self.found else None

    def new(self) -> list[tuple[int, float]]:
        """Reports that were not given out yet, as (1-based number, value)."""
        self._read()
        ordered = [self.found[step] for step in sorted(self.found)]
        fresh = list(enumerate(ordered, start=1))[self.told :]
        self.told = len(ordered)
        return fresh

    def _read(self) -> None:
        with suppress(FileNotFoundError), self.file.open("rb") as file:
            file.seek(self.offset)
            whole, newline, _ = file.read().rpartition(b"\n")
            self.offset += len(whole) + len(newline)
            for line in whole.splitlines():
                self._take(line)

    def _take(self, line: bytes) -> None:
        with suppress(ValueError):
            entry = json.loads(line)
            if not isinstance(entry, dict) or (self.events and entry.get("type") != "eval"):
                return
            values = entry.get("metrics", {}) if self.events else entry
            if self.metric not in values:
                return
            value = values[self.metric]
            step = float(entry.get("step", len(self.found) + 1))
            self.found[step] = float("nan") if value is None else float(value)


def prepare_trial(plan: SweepPlan, *, number: int, values: Mapping[str, Any]) -> TrialJob:
    """Write what the trial reads, and say how it is started; the same when it is continued."""
    folder = plan.trial_folder(number)
    folder.mkdir(parents=True, exist_ok=True)
    env = own_environment()
    write_atomically(folder / "parameters.json", json.dumps(values, indent=2) + "\n")
    if plan.sweep.command:
        reports = folder / "reports.jsonl"
        places = {"folder": folder, "reports": reports, "parameters": folder / "parameters.json"}
        words = own_programs(filled_command(plan.sweep, places, values))
        return TrialJob(folder, words, env, reports, events=False)
    config = folder / "trial.yaml"
    write_atomically(config, to_yaml(plan.resolved(values, number=number).config))
    # the file is complete: neither .training nor the environment may change a drawn value
    env["SACCADE_CONFIG"] = str(config)
    return TrialJob(folder, train_words(plan, config), env, RunDir(folder).events_file, events=True)


def train_words(plan: SweepPlan, config: Path) -> list[str]:
    """`saccade train`, or `saccade launch` for a target; the token makes it the same job again."""
    if plan.sweep.target == "local":
        return [*SACCADE, "train", "--config", str(config)]
    return launch_words(
        config, target=plan.sweep.target, token=f"{plan.sweep.name}-{config.parent.name}",
        to=config.parent,
    )  # fmt: skip


def cancel_words(plan: SweepPlan, *, number: int) -> Sequence[str]:
    """What ends a launched job whose trial was stopped; nothing for a local one."""
    if plan.sweep.command or plan.sweep.target == "local":
        return ()
    root = ["--root", str(plan.folder)]
    run = plan.run_name(number)
    return [*SACCADE, "cancel", run, *root, "--yes"]


def final_value(plan: SweepPlan, *, number: int, reports: Reports) -> float | None:
    """What a finished trial is worth: its run's final metric, else its last report."""
    done = None if plan.sweep.command else RunDir(plan.trial_folder(number)).done()
    value = (done or {}).get("metrics", {}).get(plan.sweep.metric)
    return reports.last if value is None else float(value)
