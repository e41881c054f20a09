"""The file a sweep is declared in: the format of W&B sweeps in, a checked `SweepFile` out.

`method`, `metric`, `parameters` (nested ones too), `early_terminate`, `run_cap` and `name` mean
what they mean there; what only saccade knows stands under one key, `saccade` (recipe, set, target,
command, ...), so that one file serves both. `program` and `command` at the top belong to W&B's
agent and are passed over with a note. Every mistake is named with its line and the nearest key.
Left out: sampling (`sweep_study.py`) and running (`sweep.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.config.keys import all_keys, find_key, hint_for, nearest, nearest_key
from saccade.config.layers import (
    CONFIG_DIR,
    GROUPS,
    Layer,
    Problem,
    Value,
    group_options,
    packaged_recipes,
    read_yaml,
)
from saccade.config.resolve import format_problems
from saccade.config.training_file import FLAT_NAMES
from saccade.pipeline.pipeline_file import line_of
from saccade.pipeline.sweep_space import FIELDS, Parameter, read_parameter

FOLDER = CONFIG_DIR / "sweeps"
METHODS = ("grid", "random", "bayes")
GOALS = ("minimize", "maximize")
OF_WANDB = ("program", "command", "project", "entity", "description")
TOP_KEYS = (
    "name", "method", "metric", "parameters", "early_terminate", "run_cap", "saccade", *OF_WANDB,
)  # fmt: skip
STOPPING = ("type", "min_iter", "max_iter", "eta", "s", "strict")
OWN_KEYS = (
    "recipe", "config", "set", "target", "command", "reports", "parallel", "storage", "seed",
)  # fmt: skip
DECIDED = ("run.name", "run.root", "run.store", "recipe")
"""Keys that the sweep itself decides for each trial."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class Stopping:
    """`early_terminate`: rungs are counted in reports of the metric, not in steps.

    With `min_iter` alone the rungs are min_iter * eta^k; with `max_iter` and `s` they are
    max_iter / eta^k for k = s..1; with both, several such ladders (brackets of Hyperband).
    """

    where: str
    min_iter: int | None = None
    max_iter: int | None = None
    eta: int = 3
    s: int = 2

    @property
    def first(self) -> int:
        """Reports after which a trial can be stopped for the first time."""
        if self.min_iter is not None:
            return self.min_iter
        return max((self.max_iter or 1) // self.eta**self.s, 1)


@dataclass(frozen=True)
class SweepFile:
    """A whole file; `shown` is its name in messages, `notes` what was passed over.

    `places` are the lines of what can only be checked against the schema.
    """

    name: str
    shown: str
    method: str
    metric: str
    maximize: bool
    parameters: tuple[Parameter, ...]
    stopping: Stopping | None = None
    trials: int | None = None
    recipe: str | None = None
    config: Path | None = None
    layer: Layer = field(default_factory=Layer)
    target: str = "local"
    command: tuple[str, ...] = ()
    reports: int | None = None
    parallel: int = 1
    storage: str | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)

    def place(self, key: str) -> str:
        """File and line of `metric`, `method`, `target` or `command`."""
        return self.places.get(key, self.shown)


def packaged_sweeps() -> list[str]:
    """Names of the sweeps that ship."""
    return sorted(
        path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")
    )


def find_sweep(name: str) -> SweepFile:
    """Read a file by its path, or a packaged one by its name."""
    if name.endswith((".yaml", ".yml")):
        return read_sweep(Path(name))
    known = packaged_sweeps()
    if name in known:
        return read_sweep(FOLDER / f"{name}.yaml", shown=f"sweeps/{name}.yaml")
    raise InputError(
        f"{name}: no such sweep; {hint_for(name, known)}\n  fix: give a name or a .yaml file"
    )


def read_sweep(path: Path, *, shown: str | None = None) -> SweepFile:
    """Read and check a file; raises InputError naming every mistake with its line."""
    shown = shown or str(path)
    layer = read_yaml(path, shown=shown)
    unreadable = [one for one in layer.problems if not one.key]
    if unreadable:
        raise InputError(format_problems(unreadable, what=shown))
    reading = _Reading(shown=shown, problems=list(layer.problems))
    for key, value in {**layer.choices, **layer.values}.items():
        reading.take(key, value)
    if layer.recipe is not None:
        reading.wrong("recipe", layer.recipe, "unknown key; did you mean saccade.recipe?")
    made = reading.sweep(path)
    if reading.problems:
        raise InputError(format_problems(sorted(reading.problems, key=line_of), what=shown))
    return made


@dataclass
class _Reading:
    """The entries of a file, sorted by what they belong to, and what is wrong with them."""

    shown: str
    problems: list[Problem]
    top: dict[str, Value] = field(default_factory=dict)
    metric: dict[str, Value] = field(default_factory=dict)
    stopping: dict[str, Value] = field(default_factory=dict)
    own: dict[str, Value] = field(default_factory=dict)
    settings: dict[str, Value] = field(default_factory=dict)
    parameters: dict[str, dict[str, Value]] = field(default_factory=dict)

    def take(self, key: str, value: Value) -> None:
        """Sort one dotted key in."""
        first, _, rest = key.partition(".")
        sections = {
            "metric": (self.metric, ("name", "goal", "target")),
            "early_terminate": (self.stopping, STOPPING),
        }
        if first not in TOP_KEYS:
            self.wrong(key, value, f"unknown key; {hint_for(first, TOP_KEYS)}")
        elif first == "parameters":
            self._take_parameter(key, rest, value)
        elif first == "saccade":
            self._take_own(key, rest, value)
        elif first in sections:
            kept, known = sections[first]
            if rest in known:
                kept[rest] = value
            else:
                said = f"unknown key; {hint_for(rest, known)}" if rest else "expected keys below it"
                self.wrong(key, value, said)
        elif rest and first not in OF_WANDB:
            self.wrong(key, value, "expected one value")
        else:
            self.top[first] = value

    def _take_parameter(self, key: str, rest: str, value: Value) -> None:
        """`a.parameters.b.min` and `a.b.min` both say that a.b has a min."""
        words = [word for word in rest.split(".") if word != "parameters"]
        at = next((i for i, word in enumerate(words) if i and word in FIELDS), None)
        if not rest:
            self.wrong(key, value, "expected names of parameters below it")
        elif at is None and self._is_key(".".join(words)):
            listed = isinstance(value.value, list)
            hint = f"{{values: {value.value}}}" if listed else f"{{value: {value.value}}}"
            self.wrong(key, value, f"expected keys below it: {hint}, or min and max")
        elif at is None:
            last = words[-1]
            near = nearest(last, FIELDS) if len(words) > 1 else None
            hint = f"did you mean {near}?" if near else f"expected {', '.join(FIELDS[:4])} ..."
            self.wrong(key, value, f"unknown key; {hint}" if len(words) > 1 else hint)
        else:
            own = self.parameters.setdefault(".".join(words[:at]), {})
            inner = ".".join(words[at:])
            own[inner] = value
            if inner not in FIELDS and words[at] != "value":
                self.wrong(key, value, f"expected one value under {words[at]}")

    def _is_key(self, name: str) -> bool:
        return name in FLAT_NAMES or name in GROUPS or any(
            name in (one.name, one.leaf) for one in all_keys()
        )  # fmt: skip

    def _take_own(self, key: str, rest: str, value: Value) -> None:
        first, _, inner = rest.partition(".")
        if not rest:
            self.wrong(key, value, f"expected keys below it: {', '.join(OWN_KEYS)}")
        elif first == "set" and inner:
            self.settings[inner] = value
        elif first not in OWN_KEYS or inner:
            self.wrong(key, value, f"unknown key; {hint_for(first, OWN_KEYS)}")
        else:
            self.own[first] = value

    def sweep(self, path: Path) -> SweepFile:
        """What the entries make; mistakes are added to `problems`."""
        name = self._text(self.top, "name") or path.stem.lower()
        if not NAME.fullmatch(name):
            place = self.top.get("name", Value(name, self.shown))
            text = f"{name}: a sweep's name is a folder: use a-z, 0-9, - and _"
            self.wrong("name", place, text)
        method = self._one_of(self.top, "method", METHODS, default=None)
        command = self._command()
        free = "command" in self.own
        return SweepFile(
            name=name,
            shown=self.shown,
            method=method,
            metric=self._metric(),
            maximize=self._one_of(self.metric, "goal", GOALS, default="minimize") == "maximize",
            parameters=self._parameters(method, free=free),
            stopping=self._stopping(),
            trials=self._whole(self.top, "run_cap"),
            recipe=self._recipe(),
            config=self._config(path.parent),
            layer=self._settings(free=free),
            target=self._text(self.own, "target") or "local",
            command=command,
            reports=self._whole(self.own, "reports"),
            parallel=self._whole(self.own, "parallel") or 1,
            storage=self._text(self.own, "storage"),
            seed=self._whole(self.own, "seed", least=0) or 0,
            notes=tuple(
                f"{self.top[key].where}: {key}: for W&B's own agent; passed over here"
                for key in OF_WANDB[:2] if key in self.top
            ),
            places={
                key: section[name].where
                for key, section, name in (
                    ("metric", self.metric, "name"), ("method", self.top, "method"),
                    ("target", self.own, "target"), ("command", self.own, "command"),
                )
                if name in section
            },
        )  # fmt: skip

    def _recipe(self) -> str | None:
        name, known = self._text(self.own, "recipe"), packaged_recipes()
        if name is not None and name not in known and not name.endswith((".yaml", ".yml")):
            text = f"{name}: unknown recipe; {hint_for(name, known)}"
            self.wrong("saccade.recipe", self.own["recipe"], text)
        return name

    def _config(self, folder: Path) -> Path | None:
        name = self._text(self.own, "config")
        if name is not None and not (folder / name).is_file():
            self.wrong("saccade.config", self.own["config"], f"{folder / name}: no such file")
        return folder / name if name else None

    def _metric(self) -> str:
        name = self._text(self.metric, "name")
        if name is None and not any(one.key.startswith("metric") for one in self.problems):
            place = self._section_of(self.metric)
            self._say("metric.name", place, "required but not given: what a trial measures")
        return (name or "").removeprefix("eval/")

    def _parameters(self, method: str, *, free: bool) -> tuple[Parameter, ...]:
        said = any(one.key.startswith("parameters") for one in self.problems)
        if not self.parameters and not said:
            self.problems.append(Problem(self.shown, "required but not given", key="parameters"))
        made: list[Parameter] = []
        seen: dict[str, str] = {}
        for name, fields in self.parameters.items():
            where = next(iter(fields.values())).where
            key = name if free else self._known(f"parameters.{name}", name, where)
            if key in DECIDED and not free:
                self._say(f"parameters.{name}", where, "the sweep decides it for each trial")
            if key in seen:
                self._say(f"parameters.{name}", where, f"the same key as {seen[key]}")
            seen[key] = name
            one = read_parameter(key, fields, name=name, method=method, problems=self.problems)
            if one is not None:
                self._check_options(one)
                made.append(one)
        return tuple(made)

    def _check_options(self, one: Parameter) -> None:
        """Names of ready-made options (`model: {values: [tiny]}`) must be those that ship."""
        options = group_options(one.key) if one.key in GROUPS else []
        for choice in one.choices if options else ():
            if isinstance(choice, str) and choice not in options:
                text = f"{choice}: unknown option; {hint_for(choice, options)}"
                self._say(f"parameters.{one.name}", one.where, text)

    def _known(self, label: str, name: str, where: str) -> str:
        """The dotted key a name means: itself, a `.training` name, or a leaf that is unique."""
        if name in FLAT_NAMES:
            return FLAT_NAMES[name]
        if name in GROUPS or find_key(name) is not None:
            return name
        meant = sorted({key.name for key in all_keys() if key.leaf == name})
        # `learning_rate` is the training's, whatever parts of a recipe have one of their own
        meant = [one for one in meant if _depth(one) == min(map(_depth, meant))]
        if len(meant) == 1:
            return meant[0]
        if meant:
            self._say(label, where, f"several keys end so: write {' or '.join(meant)}")
        else:
            near = nearest_key(name)
            self._say(label, where, f"unknown key; did you mean {near}?" if near else "unknown key")
        return name

    def _settings(self, *, free: bool) -> Layer:
        layer = Layer()
        for name, value in self.settings.items():
            if free:
                self.wrong(f"saccade.set.{name}", value, "a command has no configuration to set")
                continue
            key = self._known(f"saccade.set.{name}", name, value.where)
            if key in DECIDED[:3]:
                self.wrong(f"saccade.set.{name}", value, "the sweep decides it for each trial")
            if key in GROUPS and isinstance(value.value, str):
                layer.choices[key] = value
            else:
                layer.put(key, value.value, where=value.where)
        return layer

    def _command(self) -> tuple[str, ...]:
        value = self.own.get("command")
        if value is None:
            return ()
        if not isinstance(value.value, list) or not value.value:
            self.wrong("saccade.command", value, "expected a list of words")
            return ()
        for key in ("recipe", "config", "target"):
            if key in self.own:
                self.wrong(f"saccade.{key}", self.own[key], "not together with saccade.command")
        return tuple(str(word) for word in value.value)

    def _stopping(self) -> Stopping | None:
        if not self.stopping:
            return None
        where = next(iter(self.stopping.values())).where
        self._one_of(self.stopping, "type", ("hyperband",), default=None)
        numbers = {key: self._whole(self.stopping, key) for key in ("min_iter", "max_iter", "s")}
        eta = self._whole(self.stopping, "eta", least=2) or 3
        if numbers["min_iter"] is None and numbers["max_iter"] is None:
            self._say("early_terminate", where, "expected min_iter, or max_iter with s")
        low, top = numbers["min_iter"], numbers["max_iter"]
        if low is not None and top is not None and low > top:
            self._say("early_terminate", where, f"min_iter {low} is above max_iter {top}")
        return Stopping(where, min_iter=low, max_iter=top, eta=eta, s=numbers["s"] or 2)

    def _text(self, entries: Mapping[str, Value], key: str) -> str | None:
        value = entries.get(key)
        if value is None or value.value is None:
            return None
        if not isinstance(value.value, str):
            self.wrong(self._shown(entries, key), value, "expected text")
            return None
        return value.value

    def _section_of(self, entries: Mapping[str, Value]) -> str:
        """Where something is missing: in a section that is there, else in the file."""
        inside = entries is not self.top and entries
        return next(iter(entries.values())).where if inside else self.shown

    def _shown(self, entries: Mapping[str, Value], key: str) -> str:
        """A key with the section it stands in."""
        sections = {"metric": self.metric, "early_terminate": self.stopping, "saccade": self.own}
        found = next((name for name, one in sections.items() if one is entries), None)
        return f"{found}.{key}" if found else key

    def _whole(self, entries: Mapping[str, Value], key: str, *, least: int = 1) -> int | None:
        value = entries.get(key)
        if value is None or value.value is None:
            return None
        number = value.value
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            text = f"expected a whole number, {least} or more"
            self.wrong(self._shown(entries, key), value, text)
            return None
        return number

    def _one_of(
        self,
        entries: Mapping[str, Value],
        key: str,
        known: Sequence[str],
        *,
        default: str | None,
    ) -> str:
        value, shown = entries.get(key), self._shown(entries, key)
        if value is None:
            if default is None:
                text = f"required but not given (one of {', '.join(known)})"
                self._say(shown, self._section_of(entries), text)
            return default or known[0]
        if value.value not in known:
            self.wrong(shown, value, f"{value.value}: unknown; {hint_for(str(value.value), known)}")
        return str(value.value)

    def _say(self, key: str, where: str, message: str) -> None:
        self.problems.append(Problem(where, message, key=key))

    def wrong(self, key: str, value: Value, message: str) -> None:
        """Add a mistake at a value's place."""
        self._say(key, value.where, message)


def own_parameters(sweep: SweepFile, values: Mapping[str, Any]) -> Layer:
    """What a trial sets on top of everything else, each value with the line it came from."""
    layer = Layer()
    for one in sweep.parameters:
        value = Value(values[one.key], one.where, label=one.name if one.name != one.key else "")
        if one.key in GROUPS and isinstance(value.value, str):
            layer.choices[one.key] = value
        elif isinstance(value.value, dict):
            layer.put(one.key, value.value, where=one.where)
        else:
            layer.values[one.key] = value
    return layer


def _depth(key: str) -> int:
    return key.count(".")
