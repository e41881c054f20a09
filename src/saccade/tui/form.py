"""The launch form as plain data: fields made from the schema, checked as the command line would.

A recipe and typed values flow in; every key with its value, source, type and sentence flows out, or
the message that the command line would give. Text of a field is what one would type after `KEY=`.
Left out: drawing, and what is launched (`launching.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args, get_origin

from saccade.config.errors import SaccadeError

FIRST = (
    "recipe", "run.name", "launch.target", "launch.machine", "launch.strategy", "launch.budget",
    "launch.hours", "model.name", "data.train.type", "selector.keep", "training.steps",
    "training.batch_size", "training.learning_rate", "training.save_every", "launch.regions",
    "launch.max_attempts", "run.seed", "run.root",
)  # fmt: skip
"""Keys that most launches touch: they stand first."""


@dataclass(frozen=True)
class Field:
    """One key of the form."""

    key: str
    text: str
    source: str
    type: str
    default: str
    sentence: str
    options: tuple[str, ...] = ()
    changed: bool = False


@dataclass(frozen=True)
class Checked:
    """What the command line says to the words of a form."""

    words: tuple[str, ...]
    fields: tuple[Field, ...] = ()
    problem: str = ""
    fit: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass
class Form:
    """A recipe and what was typed on top of it."""

    recipe: str = "relevance"
    typed: dict[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """The words that a person would type after `saccade launch`."""
        return [self.recipe, *(f"{key}={text}" for key, text in self.typed.items())]

    def with_value(self, key: str, text: str) -> Form:
        """The form with one more value; the recipe is a field like others."""
        if key == "recipe":
            return Form(text or "relevance", dict(self.typed))
        return Form(self.recipe, {**self.typed, key: text if text else "null"})

    def without(self, key: str) -> Form:
        """The form without what was typed for a key."""
        return Form(self.recipe, {one: text for one, text in self.typed.items() if one != key})

    def check(self) -> Checked:
        """Resolve the words; a mistake is a message, never an exception."""
        from saccade.cli_inputs import resolve_words

        words = self.words()
        try:
            resolved = resolve_words(words)
        except SaccadeError as error:
            return Checked(tuple(words), problem=str(error))
        values = resolved.values()
        known = [self._field(key, value, resolved.sources[key]) for key, value in values.items()
                 if key != "recipe"]  # fmt: skip
        recipe = self._recipe(values["recipe"])
        places = {key: number for number, key in enumerate(FIRST)}
        known.sort(key=lambda one: places.get(one.key, len(FIRST)))
        return Checked(tuple(words), (recipe, *known))

    def _recipe(self, trained: str) -> Field:
        from saccade.config.layers import packaged_recipes

        return Field(
            "recipe", self.recipe, "form", "a recipe that ships, or a .yaml of yours", "relevance",
            f"What is trained ({trained}); a file adds your values to a recipe.",
            tuple(packaged_recipes()), changed=self.recipe != "relevance",
        )  # fmt: skip

    def _field(self, key: str, value: Any, source: str) -> Field:
        from saccade.config.keys import find_key

        found = find_key(key)
        changed = key in self.typed
        source = "form" if changed else source
        if found is None:
            return Field(key, text_of(value), source, "", "", "", changed=changed)
        return Field(
            key, text_of(value), source, found.type, found.default, found.sentence,
            options_of(key, found.annotation), changed,
        )  # fmt: skip


def text_of(value: Any) -> str:
    """A value as one would type it; null is empty."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value)
    return str(value)


def options_of(key: str, annotation: Any) -> tuple[str, ...]:
    """Values that can be chosen from, where they can be listed."""
    if key == "launch.machine":
        from saccade.launch.machines import MACHINES

        return tuple(MACHINES)
    if annotation is bool:
        return ("true", "false")
    if get_origin(annotation) is Literal:
        return tuple(str(one) for one in get_args(annotation))
    return ()
