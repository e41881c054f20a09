"""One stage of a pipeline file: its keys sorted, checked, and made into a `Stage`.

Dotted keys with their lines flow in, a `Stage` flows out; mistakes are added to a list, so that all
of a file are shown at once. A `${stages.X.Y}` inside `set:` or `command:` becomes an input of its
own (`${inputs.X.Y}`), so everything a stage reads is one of its inputs. What holds between stages
is checked in `pipeline_file.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from saccade.config.keys import find_key, hint_for, nearest, nearest_key
from saccade.config.layers import GROUPS, Layer, Problem, Value, group_options
from saccade.pipeline.artifacts import Best
from saccade.pipeline.graph import (
    PLACE,
    STAGE_REFERENCE,
    Gate,
    Output,
    Reference,
    Resources,
    Stage,
    parse_reference,
)
from saccade.pipeline.stages import KINDS, RECIPE_METRICS, Kind

STAGE_KEYS = (
    "uses", "recipe", "set", "depends_on", "about", "config", "command", "inputs", "outputs",
    "metrics", "gates", "resources", "target", "retries",
)  # fmt: skip
BOUNDS = ("min", "max")
"""Bounds of gates."""
MAPPINGS = ("set", "inputs", "outputs", "gates", "resources")
RESOURCES = {"cpus": int, "gpus": int, "memory_gb": float, "usd_per_hour": float}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
ANYTHING = Kind(cast(Any, None), "", (), outputs=None, configured=True, has_command=True)
"""Stands in for an unknown kind, so that its other keys can be checked."""

Problems = list[Problem]


@dataclass
class StageReader:
    """The keys of one stage so far."""

    name: str
    where: str
    plain: dict[str, Value] = field(default_factory=dict)
    below: dict[str, dict[str, Value]] = field(default_factory=dict)
    problems: Problems = field(default_factory=list)
    broken: bool = False
    """Whether something stands in its place that is no stage, which is said already."""

    def take(self, key: str, value: Value, *, problems: Problems) -> None:
        """Sort one key in: `uses`, or one with something below it such as `set.training.steps`."""
        self.problems = problems
        first, _, rest = key.partition(".")
        if first in BOUNDS:
            inner = f"{rest or 'METRIC'}: {value.value}"
            self._wrong(key, value.where, f"unknown key; write gates: {{{first}: {{{inner}}}}}")
        elif first not in STAGE_KEYS:
            hint = hint_for(first, STAGE_KEYS)
            self._wrong(key, value.where, f"unknown key; {hint}")
        elif first in MAPPINGS:
            if rest:
                self.below.setdefault(first, {})[rest] = value
            elif value.value not in (None, {}) and not (first == "outputs" and self._names(value)):
                self._wrong(key, value.where, "expected keys and values below it")
        elif rest:
            self._wrong(key, value.where, f"{first} is one value, without keys below it")
        else:
            self.plain[first] = value

    def stage(self, *, pipeline: str, problems: Problems) -> Stage:
        """Make the stage; mistakes are added to `problems`."""
        self.problems = problems
        kind = self._kind()
        inputs = self._inputs()
        self._check_inputs(kind, inputs)
        outputs = self._outputs(kind, pipeline=pipeline)
        layer = self._layer(kind, inputs)
        command = self._command(kind, inputs, outputs)
        stage = Stage(
            name=self.name,
            uses=str(self._value("uses", "")),
            where=self.where,
            recipe=self._text("recipe", kind.configured and not kind.has_command),
            config=self._config(kind),
            layer=layer,
            command=command,
            inputs=inputs,
            outputs=outputs,
            depends_on=self._depends_on(),
            gates=self._gates(),
            metrics=self._metrics(kind),
            resources=self._resources(),
            target=self.plain.get("target", Value("local", self.where)),
            retries=self._retries(),
        )
        self._check_metrics(stage, kind)
        return stage

    def _kind(self) -> Kind:
        value = self.plain.get("uses")
        if self.broken:
            return ANYTHING
        if value is None:
            known = ", ".join(KINDS)
            self._wrong("uses", self.where, f"missing: say what the stage does ({known})")
        elif str(value.value) not in KINDS:
            hint = hint_for(str(value.value), KINDS)
            self._wrong("uses", value.where, f"unknown kind {value.value}; {hint}")
        else:
            return KINDS[str(value.value)]
        return ANYTHING

    def _inputs(self) -> dict[str, Reference]:
        found = {}
        for name, value in self.below.get("inputs", {}).items():
            reference = parse_reference(str(value.value), where=value.where)
            if reference is None:
                self._wrong(
                    f"inputs.{name}", value.where,
                    f"{value.value}: expected ${{stages.STAGE.OUTPUT}}, artifact:NAME@latest"
                    " or file:PATH",
                )  # fmt: skip
            else:
                found[name] = reference
        return found

    def _check_inputs(self, kind: Kind, inputs: Mapping[str, Reference]) -> None:
        for name in kind.inputs:
            if name not in self.below.get("inputs", {}):
                near = nearest(name, inputs)
                hint = f" (not {near})" if near else ""
                self._wrong(
                    "inputs", self.where,
                    f"a stage that uses {self._value('uses', '')} needs the input {name}{hint}",
                )  # fmt: skip

    def _outputs(self, kind: Kind, *, pipeline: str) -> dict[str, Output]:
        found = {
            key: Output(key, f"{pipeline}-{self.name}-{key}", self.where)
            for key in kind.outputs or ()
        }
        listed = self.plain.get("outputs")
        for key in cast(list[str], listed.value) if listed else []:
            found[key] = Output(key, f"{pipeline}-{self.name}-{key}", cast(Value, listed).where)
        for key, value in self.below.get("outputs", {}).items():
            name, _, inner = key.partition(".")
            if kind.outputs is not None and name not in kind.outputs:
                hint = hint_for(name, kind.outputs)
                self._wrong(f"outputs.{key}", value.where, f"no such output; {hint}")
                continue
            before = found.get(name, Output(name, f"{pipeline}-{self.name}-{name}", value.where))
            found[name] = self._output(before, inner, value)
        return found

    def _output(self, before: Output, inner: str, value: Value) -> Output:
        key = f"outputs.{before.key}"
        if inner == "best":
            match = re.fullmatch(r"(max|min) (\S+)", str(value.value))
            if match is None:
                self._wrong(f"{key}.best", value.where, "expected `max METRIC` or `min METRIC`")
                return before
            best = Best(cast(Any, match[1]), match[2])
            return Output(before.key, before.name, value.where, best)
        if inner not in ("", "name"):
            self._wrong(f"{key}.{inner}", value.where, "unknown key; there is name, best")
        if not NAME.fullmatch(str(value.value)):
            self._wrong(key, value.where, "an artifact's name is letters, digits, -, _ and .")
        return Output(before.key, str(value.value), value.where, before.best)

    def _layer(self, kind: Kind, inputs: dict[str, Reference]) -> Layer:
        layer = Layer()
        for key, value in self.below.get("set", {}).items():
            where, label = value.where, f"set.{key}"
            if key.partition(".")[0] in ("run", "recipe"):
                self._wrong(label, where, "not for a stage to set; the pipeline decides it")
            elif not kind.configured and not _covers(kind.settable, key):
                allowed = ", ".join(kind.settable) or "nothing"
                self._wrong(label, where, f"fixed when the run was trained; free are {allowed}")
            elif key in GROUPS and isinstance(value.value, str):
                if value.value in group_options(key):
                    layer.choices[key] = value
                    continue
                options = ", ".join(group_options(key))
                self._wrong(label, where, f"unknown option {value.value} (options: {options})")
            elif find_key(key) is None:
                near = nearest_key(key)
                hint = f"did you mean {near}?" if near else "see `saccade config keys`"
                self._wrong(label, where, f"unknown key; {hint}")
            else:
                filled = self._spread(value.value, where=where, inputs=inputs)
                self._check_places(label, filled, where=where, known=_of("inputs", inputs))
                layer.values[key] = Value(filled, where)
        return layer

    def _spread(self, value: Any, *, where: str, inputs: dict[str, Reference]) -> Any:
        """Turn every `${stages.X.Y}` in a value into an input of its own."""
        if isinstance(value, list):
            return [self._spread(one, where=where, inputs=inputs) for one in value]
        if isinstance(value, dict):
            return {
                key: self._spread(one, where=where, inputs=inputs) for key, one in value.items()
            }
        if not isinstance(value, str):
            return value

        def replace(match: re.Match[str]) -> str:
            name = f"{match[1]}.{match[2]}"
            reference = parse_reference(match[0], where=where)
            assert reference is not None
            inputs.setdefault(name, reference)
            return f"${{inputs.{name}}}"

        return STAGE_REFERENCE.sub(replace, value)

    def _command(
        self, kind: Kind, inputs: dict[str, Reference], outputs: Mapping[str, Output]
    ) -> tuple[str, ...]:
        value = self._only("command", kind.has_command)
        if value is None:
            if kind.has_command and kind is not ANYTHING:
                self._wrong("command", self.where, "missing: expected a list of words")
            return ()
        words = value.value
        if not isinstance(words, list) or not words:
            self._wrong("command", value.where, "expected a list of words, such as [python, x.py]")
            return ()
        odd = [one for one in words if one is None or isinstance(one, (list, dict))]
        if odd:
            self._wrong("command", value.where, f"{odd[0]}: expected a word; put it in quotes")
            return ()
        filled = [self._spread(str(word), where=value.where, inputs=inputs) for word in words]
        known = [*_of("inputs", inputs), *_of("outputs", outputs), "folder", "metrics"]
        self._check_places("command", filled, where=value.where, known=known)
        return tuple(filled)

    def _check_places(self, key: str, value: Any, *, where: str, known: list[str]) -> None:
        for name in PLACE.findall(value) if isinstance(value, str) else []:
            if name not in known:
                near = nearest(name, known)
                there = ", ".join(known) or "no input to fill in"
                hint = f"did you mean ${{{near}}}?" if near else f"there is {there}"
                self._wrong(key, where, f"${{{name}}}: there is no such thing; {hint}")
        inside = value.values() if isinstance(value, dict) else value
        for one in inside if isinstance(value, (list, dict)) else []:
            self._check_places(key, one, where=where, known=known)

    def _depends_on(self) -> tuple[Value, ...]:
        value = self.plain.get("depends_on", Value([], ""))
        listed = [value.value] if isinstance(value.value, str) else value.value
        if not isinstance(listed, list):
            self._wrong("depends_on", value.where, "expected a list of stages")
            return ()
        return tuple(Value(str(one), value.where) for one in listed)

    def _gates(self) -> tuple[Gate, ...]:
        found = []
        for key, value in self.below.get("gates", {}).items():
            bound, _, metric = key.partition(".")
            if bound not in BOUNDS or not metric:
                text = "expected `min: {METRIC: NUMBER}` or `max: {METRIC: NUMBER}`"
                self._wrong(f"gates.{key}", value.where, text)
            elif not _is_number(value.value):
                self._wrong(f"gates.{key}", value.where, f"{value.value}: expected a number")
            else:
                found.append(Gate(metric, cast(Any, bound), float(value.value), value.where))
        return tuple(found)

    def _metrics(self, kind: Kind) -> tuple[str, ...]:
        value = self._only("metrics", kind.has_command)
        if value is None:
            return ()
        if not isinstance(value.value, list):
            self._wrong("metrics", value.where, "expected a list of names")
            return ()
        return tuple(str(one) for one in value.value)

    def _check_metrics(self, stage: Stage, kind: Kind) -> None:
        """Every gate and every `best` must speak of something the stage measures."""
        known = produced_metrics(stage, kind)
        asked = [(f"gates.{one.bound}.{one.metric}", one.metric, one.where) for one in stage.gates]
        asked += [
            (f"outputs.{one.key}.best", one.best.metric, one.where)
            for one in stage.outputs.values()
            if one.best is not None
        ]
        for key, metric, where in asked if known is not None and kind is not ANYTHING else []:
            assert known is not None
            if any(fnmatchcase(metric, pattern) for pattern in known):
                continue
            near = nearest(metric, known)
            there = ", ".join(known) or "nothing"
            hint = f"did you mean {near}?" if near else f"it measures {there}"
            if kind.has_command and not near:
                hint += f"\n  fix: list {metric} under `metrics:` if the program writes it"
            self._wrong(key, where, f"nothing produces this metric; {hint}")

    def _resources(self) -> Resources:
        found: dict[str, Any] = {}
        for key, value in self.below.get("resources", {}).items():
            if key not in RESOURCES:
                hint = hint_for(key, RESOURCES)
                self._wrong(f"resources.{key}", value.where, f"unknown key; {hint}")
            elif not _is_number(value.value) or value.value < 0:
                text = f"{value.value}: expected a number, 0 or more"
                self._wrong(f"resources.{key}", value.where, text)
            elif RESOURCES[key](value.value) != value.value:
                text = f"{value.value}: expected a whole number"
                self._wrong(f"resources.{key}", value.where, text)
            else:
                found[key] = RESOURCES[key](value.value)
        return Resources(**found)

    def _retries(self) -> int:
        value = self.plain.get("retries", Value(0, ""))
        if isinstance(value.value, int) and not isinstance(value.value, bool) and value.value >= 0:
            return value.value
        self._wrong("retries", value.where, "expected a whole number, 0 or more")
        return 0

    def _config(self, kind: Kind) -> Path | None:
        value = self._text("config", kind.configured)
        if value is not None and not Path(value.value).is_file():
            self._wrong("config", value.where, f"{value.value}: no such file")
            return None
        return None if value is None else Path(value.value)

    def _text(self, key: str, allowed: bool) -> Value | None:
        value = self._only(key, allowed)
        if value is not None and not isinstance(value.value, str):
            self._wrong(key, value.where, f"{value.value}: expected text")
            return None
        return value

    def _only(self, key: str, allowed: bool) -> Value | None:
        """A key that some kinds have; elsewhere it is a mistake."""
        value = self.plain.get(key)
        uses = str(self._value("uses", ""))
        if value is not None and not allowed and uses in KINDS:
            self._wrong(key, value.where, f"a stage that uses {uses} has none")
            return None
        return value

    def _names(self, value: Value) -> bool:
        """Outputs of a command may be a plain list of names."""
        listed = value.value
        if isinstance(listed, list) and all(NAME.fullmatch(str(one)) for one in listed):
            self.plain["outputs"] = value
            return True
        return False

    def _value(self, key: str, default: Any) -> Any:
        return self.plain[key].value if key in self.plain else default

    def _wrong(self, key: str, where: str, message: str) -> None:
        self.problems.append(Problem(where, message, key=f"stages.{self.name}.{key}"))


def produced_metrics(stage: Stage, kind: Kind) -> tuple[str, ...] | None:
    """Names and patterns of what a stage measures; None where anything may come."""
    if stage.uses != "train":
        return (*kind.metrics, *stage.metrics)
    from saccade.config.errors import SaccadeError
    from saccade.config.resolve import resolve

    try:
        recipe = None if stage.recipe is None else str(stage.recipe.value)
        return RECIPE_METRICS.get(resolve(recipe, file=stage.config).config.recipe)
    except SaccadeError:
        return None  # the recipe itself is wrong, which is reported where it is resolved


def _covers(sections: tuple[str, ...], key: str) -> bool:
    return any(key == one or key.startswith(one + ".") for one in sections)


def _of(prefix: str, names: Mapping[str, Any]) -> list[str]:
    return [f"{prefix}.{name}" for name in names]


def _is_number(value: Any) -> bool:
    """An ordinary number: neither true or false, nor infinite."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)
