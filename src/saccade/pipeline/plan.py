"""A pipeline made concrete: configurations resolved, artifacts found, and the key of every stage.

A `Pipeline` and what was typed flow in; a `Plan` flows out, or one error that names every mistake
with its line before anything runs. The key of a stage is the hash of all its result depends on:
the resolved configuration, the code it stands on, the content of its inputs. Where its results
lie (`runs/PIPELINE/STAGE-KEY/`) follows from the key, so a changed stage never meets an old one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError, SaccadeError
from saccade.config.layers import Layer, Problem, Value, read_overrides
from saccade.config.resolve import Resolved, flatten, format_problems, resolve
from saccade.data.sources import open_source
from saccade.pipeline.artifacts import Store, digest_of
from saccade.pipeline.graph import PLACE, Pipeline, Reference, Stage
from saccade.pipeline.pipeline_file import line_of
from saccade.pipeline.stages import KINDS, Kind, resolve_again
from saccade.pipeline.targets import target_fault
from saccade.training.rundir import FREE_KEYS

CODE_ROOT = Path(__file__).parents[1]
KEYED_FREE_KEYS = (
    "data.eval", "eval", "tiny_base.export", "training.batch_size", "training.accumulation",
    "training.eval_samples", "grounding.tau_prices",
)  # fmt: skip
"""Keys a run may change when it continues, that nevertheless change what later stages see."""
UNKEYED = tuple(key for key in FREE_KEYS if key not in KEYED_FREE_KEYS)
SHORT = 12
"""Characters of a key that name a folder."""


@dataclass(frozen=True)
class Plan:
    """A pipeline with everything that was typed; `root` is its folder under `run.root`."""

    pipeline: Pipeline
    root: Path
    store: Store
    overrides: tuple[str, ...] = ()
    training_file: Path | None = None
    env: Mapping[str, str] | None = None
    prints: dict[str, str] = field(default_factory=dict)

    def stage(self, name: str) -> Stage:
        return self.pipeline.stages[name]

    def folder(self, name: str, key: str) -> Path:
        """The stage's own run directory."""
        return self.root / folder_name(name, key)

    def resolved(self, stage: Stage, *, inputs: Mapping[str, str], run: str) -> Resolved | None:
        """The configuration of a stage whose kind has one, with its inputs filled in."""
        if not kind_of(stage).configured:
            return None
        own = Layer()
        own.put("run.root", str(self.root), where=stage.where)
        own.put("run.name", run, where=stage.where)
        return resolve(
            None if stage.recipe is None else str(stage.recipe.value),
            file=stage.config,
            training_file=self.training_file,
            env=self.env,
            # the words of this call win over the file, the pipeline's folders over both
            on_top=[filled_layer(stage, inputs), read_overrides(self.overrides), own],
        )

    def key(self, stage: Stage, digests: Mapping[str, str]) -> str:
        """Hash of everything the stage's result depends on; `digests` name its inputs' content."""
        kind = kind_of(stage)
        marks = {name: f"@{digest}@" for name, digest in digests.items()}
        resolved = self.resolved(stage, inputs=marks, run="run")
        content = {
            "uses": stage.uses,
            "config": None if resolved is None else _counted(resolved),
            "data": {} if resolved is None else self._fingerprints(resolved, set(marks.values())),
            "set": {} if resolved else filled(stage.settings(), _places(inputs=marks)),
            "command": filled(list(stage.command), _places(inputs=marks)),
            "inputs": dict(digests),
            "outputs": sorted(stage.outputs),
            "code": code_version(kind.code),
        }
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _fingerprints(self, resolved: Resolved, marks: set[str]) -> dict[str, str]:
        """Fingerprints of the data; data that another stage makes is named by its digest."""
        found = {}
        for split in ("train", "eval"):
            source = getattr(resolved.config.data, split)
            text = source.model_dump_json()
            if not any(mark in text for mark in marks):
                if text not in self.prints:
                    self.prints[text] = open_source(source).fingerprint()
                found[split] = self.prints[text]
        return found


def make_plan(
    pipeline: Pipeline,
    *,
    overrides: Sequence[str] = (),
    training_file: Path | None = None,
    env: Mapping[str, str] | None = None,
    problems: Sequence[Problem] = (),
) -> Plan:
    """Resolve and check every stage; raises InputError naming all mistakes, and runs nothing.

    `problems` are the mistakes of the file itself, named together with what is found here.
    """
    base = resolve(None, overrides=overrides, training_file=training_file, env=env).config
    store = Store(pipeline.artifacts or base.run.root / "artifacts")
    plan = Plan(
        pipeline, base.run.root / pipeline.name, store, tuple(overrides), training_file, env
    )
    found = list(problems)
    for stage in pipeline.stages.values():
        found += _input_problems(plan, stage)
        if stage.uses in KINDS:
            found += _target_problems(stage)
            found += [Problem(*_split(one)) for one in _configuration_problems(plan, stage)]
    if found:
        found = sorted(found, key=line_of)
        raise InputError(format_problems(found, what=pipeline.shown))
    return plan


def kind_of(stage: Stage) -> Kind:
    """What the table says of the stage's kind."""
    return KINDS[stage.uses]


def folder_name(name: str, key: str) -> str:
    return f"{name}-{key[:SHORT]}"


def filled(value: Any, places: Mapping[str, str]) -> Any:
    """Fill `${...}` in with values, in texts, lists and mappings."""
    if isinstance(value, str):
        return PLACE.sub(lambda match: places.get(match[1], match[0]), value)
    if isinstance(value, Mapping):
        return {name: filled(one, places) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, places) for one in value]
    return value


def filled_layer(stage: Stage, inputs: Mapping[str, str]) -> Layer:
    """What `set:` says, with the inputs filled in."""
    places = _places(inputs=inputs)
    layer = Layer(choices=dict(stage.layer.choices))
    for key, value in stage.layer.values.items():
        layer.values[key] = Value(filled(value.value, places), value.where, label=value.label)
    return layer


def _places(**groups: Mapping[str, str]) -> dict[str, str]:
    return {
        f"{group}.{name}": value for group, one in groups.items() for name, value in one.items()
    }


def command_places(
    *, inputs: Mapping[str, Path], outputs: Mapping[str, Path], folder: Path
) -> dict[str, str]:
    """What a command may have filled in."""
    own = {"folder": str(folder), "metrics": str(folder / "metrics.json")}
    texts = {name: str(path) for name, path in inputs.items()}
    return own | _places(inputs=texts, outputs={name: str(path) for name, path in outputs.items()})


def resolve_reference(plan: Plan, reference: Reference) -> str:
    """Digest of an input that no stage of this pipeline makes."""
    if reference.kind == "file":
        return digest_of(Path(reference.path))
    return plan.store.find(reference.name, reference.alias).digest


@cache
def code_version(packages: tuple[str, ...]) -> str:
    """Hash of the source files of saccade's own packages."""
    digest = hashlib.sha256()
    for package in sorted(packages):
        for path in sorted((CODE_ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(CODE_ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16] if packages else ""


def _counted(resolved: Resolved) -> dict[str, Any]:
    values = flatten(resolved.config.model_dump(mode="json"))
    return {
        key: value
        for key, value in values.items()
        if not any(key == free or key.startswith(free + ".") for free in UNKEYED)
    }


def _input_problems(plan: Plan, stage: Stage) -> list[Problem]:
    found = []
    for name, one in stage.inputs.items():
        key = f"stages.{stage.name}.inputs.{name}"
        if one.kind == "file" and not Path(one.path).exists():
            found.append(Problem(one.where, f"{one.path}: no such file or folder", key=key))
        if one.kind == "artifact":
            try:
                version = plan.store.find(one.name, one.alias)
            except InputError as error:
                found.append(Problem(one.where, str(error), key=key))
                continue
            fault = plan.store.fault(version.digest)
            if fault:
                text = f"the artifact {version} is damaged: {fault}\n  fix: {_remedy(version)}"
                found.append(Problem(one.where, text, key=key))
    return found


def _remedy(version: Any) -> str:
    made = version.lineage
    if "file" in made:
        return f"run `saccade pipeline run {made['file']}`, which makes it again"
    return "store it again, or use another version"


def _target_problems(stage: Stage) -> list[Problem]:
    target = str(stage.target.value)
    fault = target_fault(target)
    if fault is None and target != "local" and stage.uses != "train":
        fault = "only stages that use train run elsewhere"
    if fault is None:
        return []
    key = f"stages.{stage.name}.target"
    return [Problem(stage.target.where, f"{target}: {fault}", key=key)]


def _configuration_problems(plan: Plan, stage: Stage) -> list[str]:
    marks = {name: f"@{name}@" for name in stage.inputs}
    try:
        resolved = plan.resolved(stage, inputs=marks, run="run")
        if resolved is not None:
            plan._fingerprints(resolved, set(marks.values()))
        elif stage.layer.values or stage.layer.choices:
            base = _measured(plan, stage)
            if base is not None:
                resolve_again(base, on_top=[filled_layer(stage, marks)])
    except SaccadeError as error:
        first, *more = str(error).splitlines()
        if more and first[0].isdigit() and " mistakes in " in first:
            return [_placed(plan, stage, line.strip()) for line in more]
        return [_placed(plan, stage, str(error))]
    return []


def _placed(plan: Plan, stage: Stage, text: str) -> str:
    """A mistake with its line in the pipeline file, wherever else it may lie."""
    # a recipe that does not exist is said to stand on a command line, which it does not
    if stage.recipe is not None and text.startswith("command line: recipe"):
        return text.replace("command line", stage.recipe.where, 1)
    named = text.startswith(plan.pipeline.shown)
    return text if named else f"{stage.where}: stages.{stage.name}: {text}"


def _measured(plan: Plan, stage: Stage) -> Resolved | None:
    """The configuration of the run a stage measures, where a stage of this file trains it."""
    seen: set[str] = set()
    while "run" in stage.inputs and stage.name not in seen:
        seen.add(stage.name)
        if stage.inputs["run"].kind != "stage":
            return None
        found = plan.pipeline.stages.get(stage.inputs["run"].stage)
        if found is None or found.uses not in KINDS:
            return None  # an unknown stage or kind, which is named already
        stage = found
        if kind_of(stage).configured:
            marks = {name: f"@{name}@" for name in stage.inputs}
            return plan.resolved(stage, inputs=marks, run="run")
    return None


def _split(text: str) -> tuple[str, str]:
    where, _, message = text.partition(": ")
    return where, message
