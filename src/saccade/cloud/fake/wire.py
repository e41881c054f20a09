"""JSON as Google's APIs read and write it: typed fields, two enum spellings, durations, pages.

A request body and the shape of a message flow in, a canonical document flows out (camelCase, enum
names, int64 as text, "3.5s"); unknown fields are refused with Google's words. On the way back enum
names become integers when the client asked for `enum-encoding=int`. The shapes themselves lie
beside the API that uses them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from saccade.cloud.fake.http import GoogleError, Request, Response, json_response

_DURATION = re.compile(r"-?\d+(\.\d{1,9})?s")
_CAMEL = re.compile(r"_([a-z0-9])")


@dataclass(frozen=True)
class Scalar:
    """A leaf: string, int32, int64, bool, double, duration, timestamp, bytes or any JSON."""

    kind: str


@dataclass(frozen=True)
class Enum:
    """An enumeration: names with their numbers."""

    name: str
    numbers: Mapping[str, int]


@dataclass(frozen=True)
class ListOf:
    """A repeated field."""

    item: Shape


@dataclass(frozen=True)
class MapOf:
    """A map with text keys."""

    item: Shape


@dataclass(frozen=True)
class Message:
    """A message: its fields by camelCase name."""

    fields: Mapping[str, Shape]


Shape = Scalar | Enum | ListOf | MapOf | Message

STRING, INT32, INT64 = Scalar("string"), Scalar("int32"), Scalar("int64")
BOOL, DOUBLE, DURATION = Scalar("bool"), Scalar("double"), Scalar("duration")
TIMESTAMP, BYTES, ANY = Scalar("timestamp"), Scalar("bytes"), Scalar("any")


def enum(name: str, *names: str, **numbered: int) -> Enum:
    """An enum numbered from 0 in the order given, or with numbers by keyword."""
    return Enum(name, {**{text: place for place, text in enumerate(names)}, **numbered})


def decode(value: Any, shape: Shape, *, at: str = "") -> Any:
    """Check a value against its shape and make it canonical; raises a 400 like Google's."""
    if isinstance(shape, Message):
        return _decode_message(value, shape, at=at)
    if isinstance(shape, ListOf):
        if not isinstance(value, list):
            raise _invalid(value, "repeated field", at)
        return [decode(item, shape.item, at=f"{at}[{place}]") for place, item in enumerate(value)]
    if isinstance(shape, MapOf):
        if not isinstance(value, dict):
            raise _invalid(value, "map", at)
        return {str(key): decode(item, shape.item, at=at) for key, item in value.items()}
    if isinstance(shape, Enum):
        return _decode_enum(value, shape, at=at)
    return _SCALARS[shape.kind](value, at)


def encode(value: Any, shape: Shape | None, *, ints: bool) -> Any:
    """Write a canonical document; `ints` turns enum names into numbers."""
    if isinstance(shape, Enum):
        return shape.numbers.get(value, value) if ints else value
    if isinstance(value, list):
        item = shape.item if isinstance(shape, ListOf) else None
        return [encode(entry, item, ints=ints) for entry in value]
    if isinstance(value, dict):
        return {
            key: encode(entry, _field_of(shape, key), ints=ints) for key, entry in value.items()
        }
    return value


def wants_ints(request: Request) -> bool:
    """Whether the client asked for enums as integers (generated clients do)."""
    return any("enum-encoding=int" in text for text in request.query.get("$alt", []))


def reply(request: Request, value: Any, shape: Shape | None = None) -> Response:
    """Answer with a document of a shape."""
    return json_response(encode(value, shape, ints=wants_ints(request)))


def page(
    request: Request,
    items: Sequence[Any],
    *,
    field: str,
    shape: Shape | None = None,
    default: int = 50,
    most: int = 1000,
) -> Response:
    """Answer one page of a list; the token is where the next page begins."""
    body = request.json() if request.method == "POST" else {}
    size_text = request.first("pageSize") or request.first("maxResults") or body.get("pageSize")
    token = request.first("pageToken") or str(body.get("pageToken") or "")
    try:
        size = int(size_text or 0)
        start = int(base64.urlsafe_b64decode(token.encode()).decode()) if token else 0
    except ValueError as error:
        raise GoogleError(400, f"Invalid page token: {token}") from error
    if size < 0:
        raise GoogleError(400, "page_size must not be negative.")
    size = min(size or default, most)
    value: dict[str, Any] = {}
    chosen = list(items[start : start + size])
    if chosen:  # an empty list is left out, as protobuf's JSON does
        value[field] = chosen
    if start + size < len(items):
        value["nextPageToken"] = base64.urlsafe_b64encode(str(start + size).encode()).decode()
    return reply(request, value, Message({field: ListOf(shape)}) if shape else None)


def now_text(moment: float) -> str:
    """Seconds since the epoch as an RFC 3339 timestamp with microseconds."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds(duration: str | None) -> float | None:
    """A duration such as "3600s" in seconds."""
    return None if not duration else float(duration.removesuffix("s"))


def camel(name: str) -> str:
    """snake_case as camelCase."""
    return _CAMEL.sub(lambda found: found.group(1).upper(), name)


def unknown_field(name: str, at: str) -> GoogleError:
    """Google's refusal of a field that the message does not have."""
    where = f" at '{at}'" if at else ""
    text = f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.'
    violation = {"description": text, **({"field": at} if at else {})}
    bad = {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [violation],
    }
    return GoogleError(400, text, details=[bad])


def _decode_message(value: Any, shape: Message, *, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(value, "message", at)
    result: dict[str, Any] = {}
    for name, item in value.items():
        key = name if name in shape.fields else camel(name)
        if key not in shape.fields:
            raise unknown_field(name, at)
        if item is not None:
            result[key] = decode(item, shape.fields[key], at=f"{at}.{name}" if at else name)
    return result


def _decode_enum(value: Any, shape: Enum, *, at: str) -> str:
    if isinstance(value, str) and value in shape.numbers:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        for name, number in shape.numbers.items():
            if number == value:
                return name
    raise _invalid(value, f"type.googleapis.com/{shape.name}", at)


def _field_of(shape: Shape | None, key: str) -> Shape | None:
    if isinstance(shape, Message):
        return shape.fields.get(key)
    return shape.item if isinstance(shape, MapOf) else None


def _invalid(value: Any, kind: str, at: str) -> GoogleError:
    shown = value if isinstance(value, str | int | float) else type(value).__name__
    text = f"Invalid value at '{at}' ({kind}), {shown!r}"
    bad = {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{"field": at, "description": text}],
    }
    return GoogleError(400, text, details=[bad])


def _text(value: Any, at: str) -> str:
    if not isinstance(value, str):
        raise _invalid(value, "TYPE_STRING", at)
    return value


def _int(value: Any, at: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _invalid(value, "TYPE_INT32", at)
    try:
        number = float(value)
    except ValueError as error:
        raise _invalid(value, "TYPE_INT32", at) from error
    if number != int(number):
        raise _invalid(value, "TYPE_INT32", at)
    return int(value) if not isinstance(value, float) else int(number)


def _long(value: Any, at: str) -> str:
    return str(_int(value, at))


def _bool(value: Any, at: str) -> bool:
    if not isinstance(value, bool):
        raise _invalid(value, "TYPE_BOOL", at)
    return value


def _double(value: Any, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(value, "TYPE_DOUBLE", at)
    return float(value)


def _duration(value: Any, at: str) -> str:
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise _invalid(value, "type.googleapis.com/google.protobuf.Duration", at)
    return value


def _stamp(value: Any, at: str) -> str:
    try:
        datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError as error:
        raise _invalid(value, "type.googleapis.com/google.protobuf.Timestamp", at) from error
    return str(value)


def _bytes(value: Any, at: str) -> str:
    try:
        raw = base64.b64decode(_text(value, at).replace("-", "+").replace("_", "/"), validate=True)
    except ValueError as error:
        raise _invalid("...", "TYPE_BYTES", at) from error
    return base64.b64encode(raw).decode()


_SCALARS: Mapping[str, Callable[[Any, str], Any]] = {
    "string": _text,
    "int32": _int,
    "int64": _long,
    "bool": _bool,
    "double": _double,
    "duration": _duration,
    "timestamp": _stamp,
    "bytes": _bytes,
    "any": lambda value, at: value,
}
