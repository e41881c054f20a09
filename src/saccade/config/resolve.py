"""The resolver: layers of configuration in, one checked `Config` with provenance out.

Precedence, weakest first: packaged defaults < recipe < user YAML < `.training` < environment <
command line. Every mistake of every layer is shown at once, each with its place, key, value, what
is expected and the nearest valid key. `resolve` is a pure function of its arguments: it reads the
files it is given and nothing else (the command line passes `./.training` and `os.environ`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from saccade.config import recursion_names
from saccade.config.errors import InputError
from saccade.config.keys import key_names, nearest, sections
from saccade.config.layers import (
    Layer,
    Problem,
    Value,
    YamlDumper,
    packaged_layer,
    packaged_recipes,
    read_overrides,
    read_yaml,
)
from saccade.config.mistakes import problems_of
from saccade.config.schema import Config
from saccade.config.training_file import read_environment, read_training_file

DEFAULT_RECIPE = "relevance"
DEFAULT_SOURCE = "default"


@dataclass(frozen=True)
class Resolved:
    """A checked configuration and, for each dotted key, where its value came from.

    `recipe` is the packaged recipe underneath (`smoke/relevance`), while `config.recipe` names
    what is trained.
    """

    config: Config
    sources: dict[str, str]
    recipe: str = DEFAULT_RECIPE

    def to_yaml(self) -> str:
        """Write the whole configuration as YAML that resolves to the same configuration."""
        return to_yaml(self.config)

    def values(self) -> dict[str, Any]:
        """Return {dotted key: plain value} for every key, in schema order."""
        return flatten(self.config.model_dump(mode="json"))


@dataclass
class _Merged:
    """Nested values of all layers so far, and the place of each dotted key; `old_names` says
    whether the recipe takes names of the earlier design."""

    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Value] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    old_names: bool = False


def resolve(
    recipe: str | None = None,
    *,
    overrides: Sequence[str] = (),
    file: Path | None = None,
    training_file: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_top: Sequence[Layer] = (),
) -> Resolved:
    """Merge all layers and check the result; raises InputError naming every mistake.

    `recipe` is a packaged name (`relevance`, `smoke/relevance`) or the path of a user's YAML;
    `file` is a further YAML on top of it. `on_top` are layers that win over everything: what an
    ablation sets in one of its variants.
    """
    files = [] if file is None else [file]
    if recipe is not None and _is_path(recipe):
        files.insert(0, Path(recipe))
        recipe = None
    user = [read_yaml(path) for path in files]
    if training_file is not None:
        user.append(read_training_file(training_file))
    if env is not None:
        user.append(read_environment(env))
    user.append(read_overrides(overrides))
    user.extend(on_top)

    merged = _Merged(tree=Config().model_dump(mode="json"))
    name = _choose_recipe(recipe, user, problems=merged.problems)
    packaged = packaged_layer(f"recipes/{name}")
    merged.old_names = packaged.values["recipe"].value in recursion_names.RECIPES
    for layer in [packaged, *user]:
        _merge(merged, layer)
    config = _validate(merged)
    return Resolved(config=config, sources=_sources(config, merged), recipe=name)


def to_yaml(config: Config) -> str:
    """Write a configuration as YAML that resolves to the same configuration."""
    plain = config.model_dump(mode="json")
    return yaml.dump(plain, Dumper=YamlDumper, sort_keys=False, allow_unicode=True, width=100)


def flatten(tree: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Spread nested mappings into dotted keys; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, prefix=f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _is_path(recipe: str) -> bool:
    return recipe.endswith((".yaml", ".yml"))


def _choose_recipe(recipe: str | None, layers: Iterable[Layer], *, problems: list[Problem]) -> str:
    """Pick the packaged recipe underneath; two places naming different ones is a mistake."""
    asked = [] if recipe is None else [Value(value=recipe, where="command line")]
    asked += [layer.recipe for layer in layers if layer.recipe is not None]
    known = packaged_recipes()
    for choice in asked:
        if choice.value not in known:
            near = nearest(str(choice.value), known)
            hint = (
                f"did you mean {near}?" if near else "to use a file of yours, give its .yaml path"
            )
            message = f"unknown recipe; {hint} (recipes: {', '.join(known)})"
            problems.append(Problem(choice.where, message, key="recipe", value=str(choice.value)))
    valid = [choice for choice in asked if choice.value in known]
    for other in valid[1:]:
        if other.value != valid[0].value:
            message = f"{valid[0].where} asks for the recipe {valid[0].value}; name only one"
            problems.append(Problem(other.where, message, key="recipe", value=str(other.value)))
    return str(valid[0].value) if valid else DEFAULT_RECIPE


def _merge(merged: _Merged, layer: Layer) -> None:
    """Lay a layer on top: its group options first, then removals, then its own values."""
    merged.problems.extend(layer.problems)
    for group, choice in layer.choices.items():
        option = packaged_layer(f"{group}/{choice.value}", via=choice.where)
        _drop(merged, group)
        _merge(merged, option)
    for key, where in layer.removed.items():
        _remove(merged, key, where=where)
    _switch_types(merged, layer)
    for key, value in layer.values.items():
        if merged.old_names and key not in key_names():
            _put_old(merged, key, value)
        else:
            _put(merged, key, value)


def _switch_types(merged: _Merged, layer: Layer) -> None:
    """Start a source afresh when the layer changes its `type`: no key of the old one remains."""
    for key, value in layer.values.items():
        node = _at(merged.tree, key.rpartition(".")[0])
        tagged = key.endswith(".type") and key.rpartition(".")[0] in sections()
        if tagged and isinstance(node, dict) and node.get("type") != value.value:
            _drop(merged, key.rpartition(".")[0])


def _put_old(merged: _Merged, key: str, value: Value) -> None:
    """Under today's key where it is a name of the earlier design that has one; others point on."""
    today, why = recursion_names.translated(key), recursion_names.pointer(key)
    if today is not None:
        _put(merged, today, Value(value.value, value.where, label=key))
    elif why is not None:
        merged.problems.append(Problem(value.where, f"no longer a key; {why}", key=key))
    else:
        _put(merged, key, value)


def _put(merged: _Merged, key: str, value: Value) -> None:
    if key in sections():
        if value.value in (None, {}):
            return  # a section with nothing under it
        message = f"expected a mapping with keys of this section, such as {_example_key(key)}"
        shown = str(value.value)
        merged.problems.append(Problem(value.where, message, key=value.label or key, value=shown))
        return
    *parents, leaf = key.split(".")
    node = merged.tree
    for name in parents:
        below = node.get(name)
        if not isinstance(below, dict):
            below = node[name] = {}
        node = below
    node[leaf] = value.value
    merged.places[key] = value


def _drop(merged: _Merged, section: str) -> None:
    """Empty a section and forget where its values came from."""
    *parents, leaf = section.split(".")
    _at(merged.tree, ".".join(parents))[leaf] = {}
    for key in [key for key in merged.places if key.startswith(section + ".")]:
        del merged.places[key]


def _remove(merged: _Merged, key: str, *, where: str) -> None:
    """Take one key (or section) back to its packaged default."""
    section, _, leaf = key.rpartition(".")
    node = _at(merged.tree, section)
    if not isinstance(node, dict) or leaf not in node:
        merged.problems.append(Problem(where, "there is no such key to remove", key=f"~{key}"))
        return
    del node[leaf]
    for known in [k for k in merged.places if k == key or k.startswith(key + ".")]:
        del merged.places[known]


def _at(tree: dict[str, Any], key: str) -> Any:
    node: Any = tree
    for name in key.split(".") if key else []:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _example_key(section: str) -> str:
    return next(name for name in key_names() if name.startswith(section + "."))


def _validate(merged: _Merged) -> Config:
    problems = list(merged.problems)
    config = None
    try:
        config = Config.model_validate(merged.tree)
    except ValidationError as error:
        problems += problems_of(error, tree=merged.tree, places=merged.places)
    if problems or config is None:
        raise InputError(format_problems(problems))
    return config


def format_problems(problems: Sequence[Problem], *, what: str = "the configuration") -> str:
    """Write the problems as one message, each once, in the order they were met."""
    lines = list(dict.fromkeys(str(problem) for problem in problems))
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} mistakes in {what}\n" + "\n".join(f"  {line}" for line in lines)


def _sources(config: Config, merged: _Merged) -> dict[str, str]:
    """Name the place of every key; a list or map set as a whole covers what is below it."""
    found: dict[str, str] = {}
    for key in flatten(config.model_dump(mode="json")):
        value = merged.places.get(key) or merged.places.get(key.rpartition(".")[0])
        found[key] = value.where if value is not None else DEFAULT_SOURCE
    return found
