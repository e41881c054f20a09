"""The file a pipeline is declared in: YAML in, a checked `Pipeline` out, every mistake with a line.

All that can be seen without running anything is seen here: unknown keys, stages and outputs (with
the nearest valid one), a circle, an input nobody gives, a gate on a metric nothing produces. What
needs a store or a resolved configuration is checked in `plan.py`, before anything runs, too.
Packaged files stand in `config/pipelines/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from saccade.config.errors import InputError
from saccade.config.keys import hint_for
from saccade.config.layers import CONFIG_DIR, Problem, Value, read_yaml
from saccade.config.resolve import format_problems
from saccade.pipeline.graph import Pipeline, Reference, Stage, find_cycle
from saccade.pipeline.stage_reader import STAGE_KEYS, StageReader
from saccade.pipeline.stages import KINDS

FOLDER = CONFIG_DIR / "pipelines"
TOP_KEYS = ("name", "about", "parallel", "artifacts", "mirror", "stages")
MIRRORS = ("wandb",)
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def packaged_pipelines() -> list[str]:
    """Names of the pipelines that ship, smoke twins included."""
    return sorted(
        path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")
    )


def find_pipeline(name: str) -> tuple[Pipeline, list[Problem]]:
    """Read a file by its path, or a packaged one by its name (`quickstart`, `quickstart-smoke`).

    Its mistakes are returned, so that `make_plan` can name them together with those it finds.
    """
    if name.endswith((".yaml", ".yml")):
        return parse_pipeline(Path(name))
    known = packaged_pipelines()
    packaged = f"smoke/{name.removesuffix('-smoke')}" if name.endswith("-smoke") else name
    if packaged in known:
        return parse_pipeline(FOLDER / f"{packaged}.yaml", shown=f"pipelines/{packaged}.yaml")
    raise InputError(
        f"{name}: no such pipeline; {hint_for(packaged, known)}\n  fix: give a name or a .yaml file"
    )


def read_pipeline(path: Path, *, shown: str | None = None) -> Pipeline:
    """Read and check a file; raises InputError naming every mistake with its line."""
    pipeline, problems = parse_pipeline(path, shown=shown)
    if problems:
        raise InputError(format_problems(problems, what=pipeline.shown))
    return pipeline


def parse_pipeline(path: Path, *, shown: str | None = None) -> tuple[Pipeline, list[Problem]]:
    """Read a file as far as it can be read, and list its mistakes in the order of their lines."""
    shown = shown or str(path)
    layer = read_yaml(path, shown=shown)
    reading = _Reading(shown=shown, problems=list(layer.problems))
    if layer.recipe is not None:
        reading.take("recipe", layer.recipe)
    for key, value in {**layer.choices, **layer.values}.items():
        reading.take(key, value)
    pipeline = reading.pipeline(path)
    check_graph(pipeline, problems=reading.problems)
    return pipeline, sorted(reading.problems, key=line_of)


@dataclass
class _Reading:
    """The entries of a file, sorted by what they belong to, and what is wrong with them."""

    shown: str
    problems: list[Problem]
    top: dict[str, Value] = field(default_factory=dict)
    stages: dict[str, StageReader] = field(default_factory=dict)

    def take(self, key: str, value: Value) -> None:
        """Sort one dotted key in."""
        first, _, rest = key.partition(".")
        if first not in TOP_KEYS:
            self._wrong(key, value, f"unknown key; {hint_for(first, TOP_KEYS)}")
        elif first != "stages":
            if rest:
                self._wrong(key, value, "expected one value")
            self.top[first] = value
        elif not rest:
            self._wrong(key, value, "expected names of stages with `uses:` below them")
        else:
            self._take_stage(key, rest, value)

    def _take_stage(self, key: str, rest: str, value: Value) -> None:
        name, _, inner = rest.partition(".")
        if not NAME.fullmatch(name):
            self._wrong(key, value, "a stage's name is a folder: use a-z, 0-9, - and _")
            return
        reader = self.stages.setdefault(name, StageReader(name, value.where))
        if not inner:
            reader.broken = True
            self._wrong(key, value, f"expected {', '.join(STAGE_KEYS[:4])} ... below it")
            return
        reader.take(inner, value, problems=self.problems)

    def pipeline(self, path: Path) -> Pipeline:
        """What the entries make; mistakes are added to `problems`."""
        name = self._text("name") or path.stem.lower()
        if not NAME.fullmatch(name):
            place = self.top.get("name", Value(name, self.shown))
            text = f"{name}: a pipeline's name is a folder: use a-z, 0-9, - and _"
            self._wrong("name", place, text)
        # a problem without a key is about the whole file, which could not be read then
        said = any(one.key.startswith("stages") or not one.key for one in self.problems)
        if not self.stages and not said:
            self.problems.append(Problem(self.shown, "no stages: expected `stages:` with names"))
        mirror = self._text("mirror")
        if mirror is not None and mirror not in MIRRORS:
            self._wrong("mirror", self.top["mirror"], f"unknown; {hint_for(mirror, MIRRORS)}")
        made = {
            name_: reader.stage(pipeline=name, problems=self.problems)
            for name_, reader in self.stages.items()
        }
        return Pipeline(
            name=name,
            shown=self.shown,
            path=path,
            stages=made,
            parallel=self._parallel(),
            artifacts=self._text("artifacts"),
            mirror=mirror,
        )

    def _text(self, key: str) -> str | None:
        value = self.top.get(key)
        if value is None or value.value is None:
            return None
        if not isinstance(value.value, str):
            self._wrong(key, value, "expected text")
            return None
        return value.value

    def _parallel(self) -> int:
        value = self.top.get("parallel", Value(1, ""))
        if isinstance(value.value, int) and not isinstance(value.value, bool) and value.value > 0:
            return value.value
        self._wrong("parallel", value, "expected a whole number, 1 or more")
        return 1

    def _wrong(self, key: str, value: Value, message: str) -> None:
        self.problems.append(Problem(value.where, message, key=key))


def check_graph(pipeline: Pipeline, *, problems: list[Problem]) -> None:
    """Add what is wrong between the stages: unknown ones, unknown outputs, a circle."""
    stages = pipeline.stages
    for stage in stages.values():
        for one in stage.depends_on:
            if one.value not in stages:
                text = f"unknown stage {one.value}; {hint_for(str(one.value), stages)}"
                problems.append(Problem(one.where, text, key=f"stages.{stage.name}.depends_on"))
        for name, reference in stage.inputs.items():
            message = _reference_fault(reference, stages)
            if message:
                key = f"stages.{stage.name}.inputs.{name}"
                problems.append(Problem(reference.where, message, key=key))
    _refuse_own_names(pipeline, problems=problems)
    cycle = find_cycle(stages)
    if cycle is not None:
        problems.append(cycle)


def _reference_fault(reference: Reference, stages: Mapping[str, Stage]) -> str | None:
    if reference.kind != "stage":
        return None
    if reference.stage not in stages:
        hint = hint_for(reference.stage, stages)
        return f"{reference.text}: unknown stage {reference.stage}; {hint}"
    stage = stages[reference.stage]
    if reference.output not in stage.outputs and stage.uses in KINDS:
        given = list(stage.outputs)
        hint = hint_for(reference.output, given) if given else "it has no outputs"
        return f"{reference.text}: {stage.name} has no output {reference.output}; {hint}"
    return None


def _refuse_own_names(pipeline: Pipeline, *, problems: list[Problem]) -> None:
    """One artifact name, one output; and what a stage here makes is read from that stage."""
    makers: dict[str, str] = {}
    for stage in pipeline.stages.values():
        for output in stage.outputs.values():
            if output.name in makers:
                text = f"{makers[output.name]} stores its output under the name {output.name}, too"
                key = f"stages.{stage.name}.outputs.{output.key}"
                problems.append(Problem(output.where, text, key=key))
            makers[output.name] = f"{stage.name}.{output.key}"
    for stage in pipeline.stages.values():
        for name, one in stage.inputs.items():
            if one.kind == "artifact" and one.name in makers:
                text = f"made by a stage of this file: write ${{stages.{makers[one.name]}}}"
                key = f"stages.{stage.name}.inputs.{name}"
                problems.append(Problem(one.where, text, key=key))


def line_of(problem: Problem) -> tuple[str, int]:
    """Sorts problems by where they stand."""
    file, _, line = problem.where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (problem.where, 0)
