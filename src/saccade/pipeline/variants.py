"""The file an ablation is declared in: named variants of a recipe, each a few settings.

A YAML file flows in; a checked `Ablation` flows out, every setting with its line, so that a mistake
in a value is reported where it stands. A file names its `recipe`, the variant all others are
compared with (`reference`) and the `variants`: for each `set` (keys and values on top of everything
else), `groups` (which question it belongs to) and `about` (one sentence). A `grid` of keys with
lists adds every combination as a variant of the group `grid`. Packaged files stand in
`config/ablations/`. Left out: running them (`ablate.py`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.config.keys import find_key, hint_for, nearest_key
from saccade.config.layers import (
    CONFIG_DIR,
    GROUPS,
    Layer,
    Problem,
    Value,
    group_options,
    read_yaml,
)
from saccade.config.resolve import format_problems

FOLDER = CONFIG_DIR / "ablations"
TOP_KEYS = ("recipe", "reference", "seconds_per_sample", "variants", "grid")
EXPECTED = {
    "about": "expected one sentence",
    "groups": "expected a list of names",
    "set": "expected keys and values below it",
}
VARIANT_KEYS = tuple(EXPECTED)
GRID = "grid"
"""The group of the variants that a grid makes."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
RESERVED = ("recipe", "run")
"""Keys and sections an ablation decides itself."""


@dataclass(frozen=True)
class Variant:
    """One variation: `layer` holds its settings with the places they stand at."""

    name: str
    about: str = ""
    groups: tuple[str, ...] = ()
    layer: Layer = field(default_factory=Layer)

    def settings(self) -> dict[str, Any]:
        """What it sets, as {key: value}."""
        chosen = {key: value.value for key, value in self.layer.choices.items()}
        return chosen | {key: value.value for key, value in self.layer.values.items()}


@dataclass(frozen=True)
class Ablation:
    """A whole file; `shown` is its name in messages, `own_name` a user's file's, for its folder."""

    shown: str
    recipe: str
    reference: str
    variants: tuple[Variant, ...]
    seconds_per_sample: float | None = None
    own_name: str = ""

    def choose(self, wanted: Sequence[str]) -> list[str]:
        """Names of the variants meant by names and groups; all of them when none is named.

        A group always brings the reference along: it is what the group is compared with.
        """
        groups = list(dict.fromkeys(one for variant in self.variants for one in variant.groups))
        known = [*(variant.name for variant in self.variants), *groups]
        for name in wanted:
            if name not in known:
                raise InputError(
                    f"--only {name}: no such variant or group in {self.shown};"
                    f" {hint_for(name, known)}"
                )
        named = {*wanted, self.reference} if set(groups) & set(wanted) else {*wanted}
        return [
            variant.name
            for variant in self.variants
            if not wanted or {variant.name, *variant.groups} & named
        ]


def packaged_ablations() -> list[str]:
    """Recipes that an ablation file ships for."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_ablation(recipe: str) -> Ablation:
    """The packaged ablation of a recipe (its `recipe` key, as in `relevance`)."""
    if recipe not in packaged_ablations():
        raise InputError(
            f"{recipe}: no ablation ships for this recipe (there is "
            f"{', '.join(packaged_ablations())})\n  fix: write one and give it with --file"
        )
    return read_ablation(FOLDER / f"{recipe}.yaml", shown=f"ablations/{recipe}.yaml")


def read_ablation(path: Path, *, shown: str | None = None) -> Ablation:
    """Read and check a file; raises InputError naming every mistake with its line."""
    shown = shown or str(path)
    layer = read_yaml(path, shown=shown)
    reading = _Reading(problems=list(layer.problems))
    if layer.recipe is not None:
        reading.top["recipe"] = layer.recipe
    for key, value in {**layer.choices, **layer.values}.items():
        reading.take(key, value)
    variants = [reading.variant(name) for name in reading.fields]
    variants += reading.grid_variants(taken=[variant.name for variant in variants])
    if not layer.problems:
        reading.check_top(shown, [variant.name for variant in variants])
    if reading.problems:
        raise InputError(format_problems(reading.problems, what=shown))
    speed = reading.top.get("seconds_per_sample")
    return Ablation(
        shown=shown,
        recipe=str(reading.top["recipe"].value),
        reference=str(reading.top["reference"].value),
        variants=tuple(variants),
        seconds_per_sample=None if speed is None else float(speed.value),
        own_name="" if path.is_relative_to(CONFIG_DIR) else path.stem,
    )


@dataclass
class _Reading:
    """The entries of a file, sorted by what they belong to, and what is wrong with them."""

    problems: list[Problem]
    top: dict[str, Value] = field(default_factory=dict)
    fields: dict[str, dict[str, Value]] = field(default_factory=dict)
    grid: dict[str, Value] = field(default_factory=dict)

    def take(self, key: str, value: Value) -> None:
        """Sort one dotted key in."""
        first, _, rest = key.partition(".")
        if first == GRID and rest:
            self.grid[rest] = value
            return
        if first != "variants":
            if first in TOP_KEYS and not rest:
                self.top[first] = value
            else:
                self._unknown(key, value, first, TOP_KEYS)
            return
        name, _, inner = rest.partition(".")
        if not name:
            self._wrong(key, value, "expected names of variants with `set`, `groups` or `about`")
            return
        own = self.fields.setdefault(name, {})
        field_name = inner.partition(".")[0]
        if not NAME.fullmatch(name):
            self._wrong(key, value, "a variant's name is a folder: use a-z, 0-9, - and _")
        elif inner and field_name not in VARIANT_KEYS:
            self._unknown(key, value, field_name, VARIANT_KEYS)
        elif inner:
            own[inner] = value
        elif value.value is not None:
            self._wrong(key, value, "expected `set`, `groups` or `about` below a variant's name")

    def variant(self, name: str) -> Variant:
        """Put one variant's entries together."""
        about, groups, layer = "", (), Layer()
        for key, value in self.fields[name].items():
            if key == "about":
                about = str(value.value)
            elif key == "groups":
                groups = self._groups(f"variants.{name}.groups", value)
            elif key.startswith("set."):
                self._setting(key.removeprefix("set."), value, layer=layer)
            elif value.value not in (None, {}):
                self._wrong(f"variants.{name}.{key}", value, EXPECTED[key.partition(".")[0]])
        return Variant(name, about=about, groups=groups, layer=layer)

    def grid_variants(self, *, taken: Sequence[str]) -> list[Variant]:
        """Every combination of the grid's values, named by them."""
        for key, value in self.grid.items():
            if not isinstance(value.value, list) or not value.value:
                self._wrong(f"grid.{key}", value, "expected a list of values")
                return []
        names, made = set(taken), list[Variant]()
        for point in itertools.product(*(value.value for value in self.grid.values())):
            layer, words = Layer(), list[str]()
            for (key, value), chosen in zip(self.grid.items(), point, strict=True):
                self._setting(key, Value(chosen, value.where), layer=layer)
                words.append(f"{key.rpartition('.')[2]} {chosen}")
            stem = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
            free = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
            name = next(one for one in free if one not in names)
            names.add(name)
            made.append(Variant(name, groups=(GRID,), layer=layer))
        return made if self.grid else []

    def check_top(self, shown: str, names: Sequence[str]) -> None:
        """See that everything needed is there and fits."""
        for key in ("recipe", "reference"):
            if key not in self.top:
                self.problems.append(Problem(shown, "required but not given", key=key))
        if not names:
            self.problems.append(Problem(shown, "there are no variants", key="variants"))
        reference = self.top.get("reference")
        if names and reference is not None and reference.value not in names:
            self._unknown("reference", reference, str(reference.value), names, what="variant")
        speed = self.top.get("seconds_per_sample")
        number = speed is not None and isinstance(speed.value, (int, float))
        if speed is not None and not (number and speed.value > 0):
            self._wrong("seconds_per_sample", speed, "expected number > 0")

    def _groups(self, key: str, value: Value) -> tuple[str, ...]:
        listed = [value.value] if isinstance(value.value, str) else value.value
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            self._wrong(key, value, EXPECTED["groups"])
            return ()
        return tuple(listed)

    def _setting(self, key: str, value: Value, *, layer: Layer) -> None:
        if key.partition(".")[0] in RESERVED:
            self._wrong(key, value, "not for a variant to set; the ablation decides it")
        elif key in GROUPS and isinstance(value.value, str):
            if value.value in group_options(key):
                layer.choices[key] = value
            else:
                options = group_options(key)
                self._unknown(key, value, value.value, options, what="option")
        elif find_key(key) is None:
            near = nearest_key(key)
            self._wrong(key, value, f"unknown key; did you mean {near}?" if near else "unknown key")
        else:
            layer.put(key, value.value, where=value.where)

    def _unknown(
        self, key: str, value: Value, word: str, known: Sequence[str], *, what: str = "key"
    ) -> None:
        self._wrong(key, value, f"unknown {what}; {hint_for(word, known)}")

    def _wrong(self, key: str, value: Value, message: str) -> None:
        self.problems.append(Problem(value.where, message, key=key))
