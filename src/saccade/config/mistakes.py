"""Pydantic's errors put into the user's words: place, key, value, what is expected, what is near.

A `ValidationError` and the places of all values flow in; `Problem`s flow out. Positions inside
tagged unions and plain unions are folded, so that one wrong value is one message, and of a data
source only the chosen type is spoken about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from saccade.config.keys import (
    all_keys,
    annotation_of,
    branches,
    find_key,
    item_model,
    nearest,
    nearest_key,
    node_model,
    type_text,
)
from saccade.config.layers import Problem, Value
from saccade.config.schema import Config


def problems_of(
    error: ValidationError, *, tree: Mapping[str, Any], places: Mapping[str, Value]
) -> list[Problem]:
    """Translate every error; several about one value (union members) become one."""
    found: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        key, branch, index = _locate(detail["loc"])
        message, key = _explain(detail, key=key, branch=branch, tree=tree)
        found.setdefault(key + index, _problem(key, index, message, detail, places=places))
    return list(found.values())


def _problem(
    key: str, index: str, message: str, detail: ErrorDetails, *, places: Mapping[str, Value]
) -> Problem:
    place = _place_of(key, places)
    label = place.label if place is not None else ""
    shown = f"{label} ({key}{index})" if label else key + index
    value = None if detail["type"] in ("missing", "value_error") else _short(detail)
    return Problem(
        where=place.where if place is not None else "configuration",
        key=shown,
        value=value,
        message=message,
    )


def _explain(
    detail: ErrorDetails, *, key: str, branch: str, tree: Mapping[str, Any]
) -> tuple[str, str]:
    """Say what is wrong and at which key."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind != "value_error" and (within := _within_items(detail, key=key)):
        return within, key
    if kind == "extra_forbidden":
        return _unknown_key(key, branch=branch), key
    if kind == "union_tag_invalid":
        valid = [name.strip("' ") for name in str(context["expected_tags"]).split(",")]
        near = nearest(str(context["tag"]), valid)
        hint = f"; did you mean {near}?" if near else ""
        return f"expected one of {', '.join(valid)}{hint}", f"{key}.type"
    if kind == "union_tag_not_found":
        return "a data source needs its type", f"{key}.type"
    if kind == "value_error":
        return str(context.get("error", detail["msg"])), key
    known = find_key(key, branch=branch)
    if kind == "missing":
        expected = f" ({known.type}: {known.sentence})" if known else ""
        owner = f" for type {branch}" if branch else ""
        return f"required{owner} but not given{expected}", key
    if known is None:
        return detail["msg"], key
    return f"expected {known.type}", key


def _within_items(detail: ErrorDetails, *, key: str) -> str:
    """What is wrong inside a list of nodes, such as a schedule's phase; else nothing."""
    known = find_key(key)
    model = item_model(known.annotation) if known else None
    inside = detail["loc"][key.count(".") + 1 :]
    *parents, leaf = [item for item in inside if isinstance(item, str)] or [""]
    for name in parents:
        model = node_model(model.model_fields[name]) if model else None
    if model is None or not leaf:
        return ""
    if leaf in model.model_fields:
        field = model.model_fields[leaf]
        missing = "required but not given, " if detail["type"] == "missing" else ""
        return f"{missing}expected {type_text(annotation_of(field))}"
    near = nearest(leaf, model.model_fields)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(model.model_fields)}"
    return f"unknown key; {hint}"


def _unknown_key(key: str, *, branch: str) -> str:
    others = [known.branch for known in all_keys() if known.name == key and known.branch]
    if branch and others:
        kinds = ", ".join(dict.fromkeys(others))
        section = key.rpartition(".")[0]
        return f"not a key of type {branch} but of {kinds}; set {section}.type as well"
    near = nearest_key(key, branch=branch)
    if near:
        return f"unknown key; did you mean {near}?"
    section = key.rpartition(".")[0]
    siblings = [
        known.leaf
        for known in all_keys()
        if known.section == section and known.branch in ("", branch)
    ]
    if siblings:
        return f"unknown key; {section or 'the top level'} has {', '.join(siblings)}"
    return "unknown key; `saccade config keys` lists the valid ones"


def _locate(location: tuple[int | str, ...]) -> tuple[str, str, str]:
    """Turn pydantic's position into (dotted key, union branch, list index)."""
    parts: list[str] = []
    branch, index = "", ""
    model: type[BaseModel] | None = Config
    pending: FieldInfo | None = None
    for step, item in enumerate(location):
        if pending is not None and str(item) in branches(pending):
            branch, model, pending = str(item), branches(pending)[str(item)], None
            continue
        if model is None:
            return ".".join(parts), branch, _rest(location[step:], parts)
        parts.append(str(item))
        field = model.model_fields.get(str(item))
        pending = field if field is not None and branches(field) else None
        model = node_model(field) if field is not None else None
    return ".".join(parts), branch, index


def _rest(items: tuple[int | str, ...], parts: list[str]) -> str:
    """Read what follows a leaf: list positions and map keys; union member names are skipped."""
    key = find_key(".".join(parts))
    if key is not None and item_model(key.annotation):
        return "".join(f"[{item}]" if isinstance(item, int) else f".{item}" for item in items)
    if key is not None and key.type.startswith("map "):
        return f".{items[0]}"
    return "".join(f"[{item}]" for item in items if isinstance(item, int))


def _place_of(key: str, places: Mapping[str, Value]) -> Value | None:
    """Find where a key was set: itself, something below it, its tag, or the node above it."""
    if key in places:
        return places[key]
    for known, value in places.items():
        if known.startswith(key + "."):
            return value
    section = key.rpartition(".")[0]
    return places.get(f"{section}.type") or (places.get(section) if section else None)


def _short(detail: ErrorDetails) -> str:
    value = detail["input"]
    if detail["type"] == "union_tag_invalid":
        value = detail.get("ctx", {})["tag"]
    if isinstance(value, Mapping):
        return "{" + ", ".join(str(name) for name in value) + "}"
    text = "null" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
