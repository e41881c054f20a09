"""What a pipeline is: stages, the artifacts between them, and the order that follows.

Values only, each with the file and line it stands at, and the questions that need nothing but the
graph: who needs whom, is there a cycle, what comes after a stage. `pipeline_file.py` makes them
from YAML, `plan.py` resolves their configurations, `execute.py` runs them.
"""

from __future__ import annotations

import graphlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from saccade.config.layers import Layer, Problem, Value
from saccade.pipeline.artifacts import Best

STAGE_REFERENCE = re.compile(r"\$\{stages\.([^.}]+)\.([^}]+)\}")
ARTIFACT_REFERENCE = re.compile(r"artifact:([^@\s]+)(?:@([^@\s]+))?")
FILE_REFERENCE = re.compile(r"file:(.+)")
PLACE = re.compile(r"\$\{([^}]*)\}")
"""Something to fill in: `${inputs.data}`, `${outputs.model}`, `${folder}`, `${metrics}`."""


@dataclass(frozen=True)
class Reference:
    """Where an input comes from: a stage's output, a stored artifact, or a file as it is now."""

    kind: Literal["stage", "artifact", "file"]
    text: str
    where: str
    stage: str = ""
    output: str = ""
    name: str = ""
    alias: str = "latest"
    path: str = ""


def parse_reference(text: str, *, where: str) -> Reference | None:
    """Read `${stages.sft.model}`, `artifact:NAME@latest` or `file:PATH`; None for anything else."""
    if match := STAGE_REFERENCE.fullmatch(text):
        return Reference("stage", text, where, stage=match[1], output=match[2])
    if match := ARTIFACT_REFERENCE.fullmatch(text):
        return Reference("artifact", text, where, name=match[1], alias=match[2] or "latest")
    if match := FILE_REFERENCE.fullmatch(text):
        return Reference("file", text, where, path=match[1])
    return None


@dataclass(frozen=True)
class Output:
    """One output of a stage and the artifact name it is stored under."""

    key: str
    name: str
    where: str
    best: Best | None = None


@dataclass(frozen=True)
class Gate:
    """A bound that a metric of the stage must keep, or the pipeline stops there."""

    metric: str
    bound: Literal["min", "max"]
    value: float
    where: str

    def fault(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong with the measured metrics; None when the gate is open."""
        found = metrics.get(self.metric)
        if found is None:
            return f"{self.metric} was not measured"
        # NaN compares false with everything, and must not pass; a gain of 0.845 - 0.865 must
        close = math.isclose(found, self.value, rel_tol=1e-9, abs_tol=1e-12)
        passed = close or (found >= self.value if self.bound == "min" else found <= self.value)
        wanted = f"at {'least' if self.bound == 'min' else 'most'} {self.value:g}"
        return None if passed else f"{self.metric} is {found:.4g}, {wanted} is asked for"


@dataclass(frozen=True)
class Resources:
    """What a stage may use, and what an hour of it costs."""

    cpus: int | None = None
    gpus: int | None = None
    memory_gb: float | None = None
    usd_per_hour: float | None = None


@dataclass(frozen=True)
class Stage:
    """One stage as written; `layer` holds what `set:` says, with its places."""

    name: str
    uses: str
    where: str
    recipe: Value | None = None
    config: Path | None = None
    layer: Layer = field(default_factory=Layer)
    command: tuple[str, ...] = ()
    inputs: Mapping[str, Reference] = field(default_factory=dict)
    outputs: Mapping[str, Output] = field(default_factory=dict)
    depends_on: tuple[Value, ...] = ()
    gates: tuple[Gate, ...] = ()
    metrics: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    target: Value = field(default_factory=lambda: Value("local", ""))
    retries: int = 0

    def needs(self) -> dict[str, str]:
        """{stage: where it is named} for every stage that must be finished first."""
        named = {str(one.value): one.where for one in self.depends_on}
        read = {one.stage: one.where for one in self.inputs.values() if one.kind == "stage"}
        return {**named, **read}

    def settings(self) -> dict[str, Any]:
        """What `set:` says, as {key: value}."""
        chosen = {key: value.value for key, value in self.layer.choices.items()}
        return chosen | {key: value.value for key, value in self.layer.values.items()}


@dataclass(frozen=True)
class Pipeline:
    """A whole file; `path` is the file itself, `shown` its name in messages."""

    name: str
    shown: str
    path: Path
    stages: Mapping[str, Stage]
    parallel: int = 1
    artifacts: str | None = None
    mirror: str | None = None

    def order(self) -> list[str]:
        """Every stage after all it needs; what is free to choose stays as it is in the file."""
        sorter = graphlib.TopologicalSorter(self.graph())
        return list(sorter.static_order())

    def graph(self) -> dict[str, list[str]]:
        """{stage: the stages it needs}."""
        return {name: list(stage.needs()) for name, stage in self.stages.items()}

    def descendants(self, name: str) -> set[str]:
        """The stage and everything that needs it, directly or not."""
        found = {name}
        for one in self.order():
            if found & set(self.stages[one].needs()):
                found.add(one)
        return found


def find_cycle(stages: Mapping[str, Stage]) -> Problem | None:
    """Name the stages of a cycle with the line of every step; None when there is none."""
    known = {
        name: [one for one in stage.needs() if one in stages] for name, stage in stages.items()
    }
    try:
        graphlib.TopologicalSorter(known).prepare()
    except graphlib.CycleError as error:
        circle: Sequence[str] = error.args[1]
        # each stage in the list is needed by the next one
        steps = [(after, before) for before, after in itertools.pairwise(circle)][::-1]
        lines = [f"{one} needs {other} ({stages[one].needs()[other]})" for one, other in steps]
        where = stages[steps[0][0]].needs()[steps[0][1]]
        return Problem(where, f"the stages need each other in a circle: {', '.join(lines)}")
    return None
