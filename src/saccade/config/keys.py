"""What keys exist: the schema walked into a flat table, plus nearest-name search.

The `Config` tree flows in; a table of `Key` (dotted name, readable type, default, sentence) flows
out. The resolver, the error messages, `saccade config keys` and the generated reference all read
this one table. Nothing here knows where values come from.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from saccade.config.schema import Config

_NUMERIC = (annotated_types.Gt, annotated_types.Ge, annotated_types.Lt, annotated_types.Le)


@dataclass(frozen=True)
class Key:
    """One dotted key. `branch` is the `type` of the source it belongs to, else empty."""

    name: str
    annotation: Any
    type: str
    default: str
    sentence: str
    branch: str = ""
    required: bool = False

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]


def branches(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """Return {type value: model} when the field is a tagged union of models, else {}."""
    if not isinstance(field.discriminator, str):
        return {}
    tag = field.discriminator
    return {
        get_args(model.model_fields[tag].annotation)[0]: model
        for model in get_args(field.annotation)
    }


def node_model(field: FieldInfo) -> type[BaseModel] | None:
    """Return the field's config node class, or None for a leaf or a tagged union."""
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def item_model(annotation: Any) -> type[BaseModel] | None:
    """Return the node class that a list holds, or None when it holds none."""
    if get_origin(annotation) is Annotated:
        return item_model(get_args(annotation)[0])
    item = get_args(annotation)[0] if get_origin(annotation) is list else None
    return item if isinstance(item, type) and issubclass(item, BaseModel) else None


def annotation_of(field: FieldInfo) -> Any:
    """Return the field's annotation with its constraints put back."""
    if not field.metadata:
        return field.annotation
    return Annotated[(field.annotation, *field.metadata)]


@cache
def all_keys() -> tuple[Key, ...]:
    """List every dotted key; keys of a tagged union appear once per `type` that has them."""
    return tuple(_walk(Config, prefix="", branch=""))


@cache
def sections() -> dict[str, str]:
    """Return {dotted section: sentence} for every node of the tree."""
    return dict(_walk_sections(Config, prefix=""))


@cache
def key_names() -> tuple[str, ...]:
    """List every distinct dotted key."""
    return tuple(dict.fromkeys(key.name for key in all_keys()))


def find_key(name: str, *, branch: str = "") -> Key | None:
    """Look a dotted key up, preferring the given union branch; entries of a map count as it."""
    for candidate in (name, name.rpartition(".")[0]):
        found = [key for key in all_keys() if key.name == candidate]
        if candidate != name:
            found = [key for key in found if _is_map(key.annotation)]
        for key in found:
            if key.branch == branch or not branch:
                return key
        if found:
            return found[0]
    return None


def is_text(annotation: Any) -> bool:
    """Tell whether a value of this type is plain text: str, Path, names, each perhaps null."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return is_text(get_args(annotation)[0])
    if origin is Literal:
        return all(isinstance(value, str) for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        members = [arm for arm in get_args(annotation) if arm is not type(None)]
        return all(is_text(arm) for arm in members)
    return annotation in (str, Path)


def allows_null(annotation: Any) -> bool:
    """Tell whether null is a value of this type."""
    if get_origin(annotation) is Annotated:
        return allows_null(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return type(None) in get_args(annotation)
    return annotation is type(None)


def type_text(annotation: Any, *, limits: Sequence[Any] = ()) -> str:
    """Describe a type in the words used by error messages and the reference."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(args[0], limits=[*limits, *_numeric(args[1:])])
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(arm) for arm in args)
    if origin is Literal:
        names = [str(value) for value in args]
        return names[0] if len(names) == 1 else "one of " + ", ".join(names)
    if origin is list:
        inner = type_text(args[0])
        return f"list of {inner}" if " or " not in inner else f"list of ({inner})"
    if origin is dict:
        keys = ", ".join(str(value) for value in get_args(args[0])) or "text"
        return f"map from ({keys}) to {type_text(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "map of " + ", ".join(annotation.model_fields)
    plain = {str: "text", Path: "path", bool: "true or false", type(None): "null"}
    if annotation in plain:
        return plain[annotation]
    word = "integer" if annotation is int else "number"
    return word + _limits_text(limits, whole=annotation is int)


def distance(left: str, right: str) -> int:
    """Edit distance where swapping two neighbouring letters counts once."""
    rows = [list(range(len(right) + 1))]
    for i, a in enumerate(left, start=1):
        row = [i]
        for j, b in enumerate(right, start=1):
            cost = min(row[j - 1] + 1, rows[i - 1][j] + 1, rows[i - 1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, rows[i - 2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate a person most likely meant, or None when none is near."""
    scored = [(distance(word.lower(), other.lower()), other) for other in candidates]
    best = min(scored, default=(0, None), key=lambda pair: pair[0])
    allowed = max(2, round(0.4 * len(word)))
    return best[1] if best[0] <= allowed else None


def hint_for(word: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or what there is."""
    known = list(known)
    near = nearest(word, known)
    return f"did you mean {near}?" if near else f"there is {', '.join(known)}"


def nearest_key(name: str, *, branch: str = "") -> str | None:
    """Return the dotted key a person most likely meant by an unknown one.

    A slip inside the right section costs its edits; the right leaf in a wrong or missing section
    costs one more, so `lerning_rate` and `learning_rate` both lead to `training.learning_rate`.
    """
    section, _, leaf = name.rpartition(".")
    usable = [key for key in all_keys() if not key.branch or not branch or key.branch == branch]
    scored: list[tuple[int, str]] = [(distance(name, other), other) for other in sections()]
    for key in usable:
        elsewhere = 0 if key.section == section else 1
        costs = (distance(name, key.name), distance(leaf, key.leaf) + elsewhere)
        scored.append((min(costs), key.name))
    best = min(scored, key=lambda pair: pair[0])
    return best[1] if best[0] <= max(2, round(0.4 * len(leaf))) else None


def plain_default(field: FieldInfo) -> str:
    """Write a field's default as it would stand in YAML; required fields have none."""
    if field.is_required() or field.default is PydanticUndefined:
        return "required"
    value = field.default
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value)


def _walk(model: type[BaseModel], *, prefix: str, branch: str) -> Iterable[Key]:
    for name, field in model.model_fields.items():
        dotted = prefix + name
        node = node_model(field)
        if node is not None:
            yield from _walk(node, prefix=dotted + ".", branch=branch)
        elif branches(field):
            for tag, arm in branches(field).items():
                yield from _walk(arm, prefix=dotted + ".", branch=tag)
        else:
            yield Key(
                name=dotted,
                annotation=annotation_of(field),
                type=type_text(annotation_of(field)),
                default=plain_default(field),
                sentence=sentence(field.description),
                branch=branch,
                required=field.is_required(),
            )


def _walk_sections(model: type[BaseModel], *, prefix: str) -> Iterable[tuple[str, str]]:
    for name, field in model.model_fields.items():
        node = node_model(field)
        if node is not None:
            yield prefix + name, sentence(field.description or node.__doc__)
            yield from _walk_sections(node, prefix=prefix + name + ".")
        elif branches(field):
            yield prefix + name, sentence(field.description)


def sentence(text: str | None) -> str:
    """Fold a docstring into one line."""
    return " ".join((text or "").split())


def _is_map(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def _numeric(metadata: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            found.extend(_numeric(item.metadata))
        elif isinstance(item, _NUMERIC):
            found.append(item)
    return found


def _limits_text(limits: Sequence[Any], *, whole: bool) -> str:
    """Write limits as ` >= 1` or ` in (0, 1]`."""
    low, top, opening, closing = None, None, "(", ")"
    for limit in limits:
        if isinstance(limit, annotated_types.Gt):
            low, opening = (int(str(limit.gt)) + 1, "[") if whole else (limit.gt, "(")
        elif isinstance(limit, annotated_types.Ge):
            low, opening = limit.ge, "["
        elif isinstance(limit, annotated_types.Lt):
            top, closing = limit.lt, ")"
        elif isinstance(limit, annotated_types.Le):
            top, closing = limit.le, "]"
    if low is not None and top is not None:
        return f" in {opening}{low:g}, {top:g}{closing}"
    if low is not None:
        return f" >{'=' if opening == '[' else ''} {low:g}"
    if top is not None:
        return f" <{'=' if closing == ']' else ''} {top:g}"
    return ""
