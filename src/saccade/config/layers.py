"""Layers of configuration: each place a value may come from, read with its position.

Files, Hydra compositions and override strings flow in; each leaves as a `Layer`: dotted keys with
values, the place (file:line) each came from, and the problems met on the way. Nothing raises for a
user's mistake, so that the resolver can show all of them at once. Merging and validation live in
`resolve.py`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from saccade.config.keys import allows_null, find_key, is_text, nearest

CONFIG_DIR = Path(__file__).parent
GROUPS = ("model", "arch", "data")
"""Sections for which ready-made options ship (`model=qwen3-vl-2b`)."""

_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.X,
)
_INT = re.compile(r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")


@dataclass(frozen=True)
class Problem:
    """One mistake of the user: where it stands, which key, what is wrong."""

    where: str
    message: str
    key: str = ""
    value: str | None = None

    def __str__(self) -> str:
        subject = self.key if self.value is None else f"{self.key} = {self.value}".strip(" =")
        return f"{self.where}: {subject}: {self.message}" if subject else (
            f"{self.where}: {self.message}"
        )  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A value with its place; `label` is the name it has there when that is not the key."""

    value: Any
    where: str
    label: str = ""


@dataclass
class Layer:
    """Values of one place. `values` maps dotted keys; `removed` are keys to fall back to defaults;
    `choices` are group options to load first; `recipe` names the recipe the place asks for."""

    values: dict[str, Value] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)
    choices: dict[str, Value] = field(default_factory=dict)
    recipe: Value | None = None
    problems: list[Problem] = field(default_factory=list)

    def put(self, key: str, value: Any, *, where: str, label: str = "") -> None:
        """Add a value; nested mappings are spread into dotted keys."""
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                self.put(f"{key}.{name}", inner, where=where, label=label)
            return
        self.values[key] = Value(value=value, where=where, label=label)


class _YamlLoader(yaml.SafeLoader):
    """YAML as people expect it: `1e-5` is a number; `off`, `yes` and dates are text."""


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag.rpartition(":")[2] in ("null", "merge")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))


class YamlDumper(yaml.SafeDumper):
    """Quotes text that either this loader or plain PyYAML would read as something else."""


YamlDumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str) -> Any:
    """Parse one YAML value by the rules of saccade's files."""
    return yaml.load(text, Loader=_YamlLoader)


def read_text(text: str, annotation: Any) -> Any:
    """Turn flat text into a value of the key's type; text that does not parse stays text."""
    if allows_null(annotation) and text.lower() in ("null", "none"):
        return None
    if is_text(annotation):
        return text
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return text


def read_yaml(path: Path, *, shown: str | None = None, section: str = "") -> Layer:
    """Read a YAML file; `shown` is its name in messages, `section` the node its keys belong to."""
    layer, shown = Layer(), shown or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        layer.problems.append(Problem(where=shown, message=f"cannot be read: {reason}"))
        return layer
    try:
        loader = _YamlLoader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        layer.problems.append(Problem(where=shown + line, message=f"not YAML: {error.problem}"))
        return layer
    except yaml.reader.ReaderError as error:
        line = text[: int(error.position)].count("\n") + 1
        message = f"not YAML: a character that no text has (#x{int(error.character):04x})"
        layer.problems.append(Problem(where=f"{shown}:{line}", message=message))
        return layer
    if root is None:
        return layer
    if not isinstance(root, yaml.MappingNode):
        message = "expected `key: value` lines at the top level"
        layer.problems.append(Problem(where=f"{shown}:1", message=message))
        return layer
    for key, value in _flatten(loader, root, prefix=section, shown=shown, layer=layer):
        _place(layer, key, value)
    return layer


def read_overrides(overrides: Sequence[str]) -> Layer:
    """Read command-line overrides: Hydra's grammar, except that text keys take the rest as is."""
    layer = Layer()
    for override in overrides:
        name, equals, text = override.partition("=")
        key = find_key(name.lstrip("+"))
        if equals and key is not None and is_text(key.annotation) and not name.startswith("~"):
            text = _unquote(text)
            empty = allows_null(key.annotation) and text.lower() in ("null", "none")
            place = Value(value=None if empty else text, where="command line")
            _place(layer, name.lstrip("+"), place)
        else:
            _read_hydra_override(layer, override)
    return layer


def _read_hydra_override(layer: Layer, override: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    def problem(message: str) -> None:
        layer.problems.append(Problem(where="command line", key=override, message=message))

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        problem("expected key=value, for example training.steps=100")
        return
    if parsed.is_sweep_override():
        problem("one value expected; write a list as key=[a,b]")
    elif parsed.is_delete():
        layer.removed[parsed.key_or_group] = "command line"
    else:
        place = Value(value=_plain(parsed.value()), where="command line")
        _place(layer, parsed.key_or_group, place)


def packaged_recipes() -> list[str]:
    """List the names of the recipes that ship, smoke twins included."""
    folder = CONFIG_DIR / "recipes"
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")
    )


def group_options(group: str) -> list[str]:
    """List the ready-made options of a section."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


_HYDRA = threading.Lock()
"""Hydra keeps its state once per process; forms resolve in several threads."""


@cache
def compose_packaged(name: str) -> tuple[dict[str, Any], list[tuple[Path, str]]]:
    """Compose a packaged file (`recipes/relevance`, `model/tiny`) with Hydra.

    Returns the plain values and the files they came from, as (path, section), later ones winning.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    with _HYDRA:
        callers_hydra = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR.resolve())):
                values = OmegaConf.to_container(compose(name), resolve=True)
                loader = GlobalHydra.instance().config_loader()
                found = loader.compute_defaults_list(name, [], RunMode.RUN).defaults
        finally:
            # leaving the block above puts a fresh state in place, so it is looked up again
            GlobalHydra.instance().hydra = callers_hydra
    assert isinstance(values, dict)
    files = [
        (CONFIG_DIR / f"{item.config_path}.yaml", item.package or "")
        for item in found
        if item.config_path and not item.config_path.startswith("hydra/")
    ]
    return {str(key): value for key, value in values.items()}, files


def packaged_layer(name: str, *, via: str = "") -> Layer:
    """Compose a packaged file and find the line each value came from."""
    values, files = compose_packaged(name)
    layer, lines = Layer(), {}
    for path, section in files:
        shown = path.relative_to(CONFIG_DIR).as_posix()
        found = read_yaml(path, shown=shown, section=section)
        layer.problems.extend(found.problems)
        lines.update({key: value.where for key, value in found.values.items()})
        if found.recipe:
            lines["recipe"] = found.recipe.where
    suffix = f" ({via})" if via else ""
    for key, value in values.items():
        layer.put(key, value, where="")
    for key, value in layer.values.items():
        where = lines.get(key, name + ".yaml") + suffix
        layer.values[key] = Value(value=value.value, where=where)
    return layer


def _place(layer: Layer, key: str, value: Value) -> None:
    """Sort one entry into the layer: a recipe, a group option, or a value."""
    if key == "defaults" and isinstance(value.value, list):
        return  # Hydra's own list; only packaged files have one and Hydra has read it
    if key == "recipe":
        layer.recipe = value
    elif key in GROUPS and isinstance(value.value, str):
        if value.value in group_options(key):
            layer.choices[key] = value
        else:
            near = nearest(value.value, group_options(key))
            hint = f"did you mean {near}? " if near else ""
            options = ", ".join(group_options(key))
            message = f"unknown option; {hint}(options: {options})"
            problem = Problem(where=value.where, key=key, value=value.value, message=message)
            layer.problems.append(problem)
    else:  # unknown ones, too: an old name where the recipe takes it, or a mistake found later
        layer.put(key, value.value, where=value.where, label=value.label)


def _flatten(
    loader: _YamlLoader, node: yaml.MappingNode, *, prefix: str, shown: str, layer: Layer,
    above: tuple[yaml.MappingNode, ...] = (),
) -> Iterator[tuple[str, Value]]:  # fmt: skip
    loader.flatten_mapping(node)
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        name, line = str(key_node.value), key_node.start_mark.line + 1
        dotted = f"{prefix}.{name}" if prefix else name
        if name in seen:
            message = f"given twice (first in line {seen[name]})"
            layer.problems.append(Problem(where=f"{shown}:{line}", key=dotted, message=message))
        seen[name] = line
        if any(value_node is one for one in (*above, node)):
            message = "stands inside itself"
            layer.problems.append(Problem(where=f"{shown}:{line}", key=dotted, message=message))
            continue
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            yield from _flatten(
                loader, value_node, prefix=dotted, shown=shown, layer=layer, above=(*above, node)
            )
            continue
        try:
            value = loader.construct_object(value_node, deep=True)
        except yaml.YAMLError as error:
            message = f"not a plain value: {getattr(error, 'problem', error)}"
            layer.problems.append(Problem(where=f"{shown}:{line}", key=dotted, message=message))
            continue
        yield dotted, Value(value=value, where=f"{shown}:{line}")


def _plain(value: Any) -> Any:
    """Replace Hydra's quoted strings by their text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    return getattr(value, "text", value)


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
