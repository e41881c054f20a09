"""The filter language of list calls: `labels.run="x" AND (state=A OR NOT severity>=ERROR)`.

A filter text flows in, a predicate over documents flows out. It knows what saccade and ordinary
clients send: comparisons (= != < <= > >= : =~), AND (also by juxtaposition), OR, NOT, `-` and
parentheses. Functions and global search terms are refused with a 400.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from saccade.cloud.fake.http import GoogleError
from saccade.cloud.fake.wire import camel

Predicate = Callable[[dict[str, Any]], bool]

_TOKEN = re.compile(
    r"""\s*(?:(?P<open>\()|(?P<close>\))|(?P<op><=|>=|!=|=~|!~|=|<|>|:)
    |"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<word>[^\s()"=<>!:~]+(?::[^\s()"=<>!]+)?))""",
    re.VERBOSE,
)
SEVERITIES = [
    "DEFAULT", "DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL", "ALERT", "EMERGENCY",
]  # fmt: skip


def parse(text: str) -> Predicate:
    """The predicate of a filter; an empty one accepts everything."""
    if not text.strip():
        return lambda document: True
    tokens = list(_tokens(text))
    predicate, place = _either(tokens, 0, text)
    if place != len(tokens):
        raise _refuse(text)
    return predicate


def lookup(document: dict[str, Any], path: str) -> Any:
    """A dotted path in a document; snake_case finds camelCase, quoted parts keep their dots."""
    value: Any = document
    for part in _parts(path):
        if not isinstance(value, dict):
            return None
        value = value.get(part, value.get(camel(part)))
    return value


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(text) and text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None or found.lastgroup is None:
            raise _refuse(text)
        kind, value = found.lastgroup, found.group(found.lastgroup)
        place = found.end()
        if kind == "word" and ":" in value:  # `name:value` is a comparison, a timestamp is not
            name, _, rest = value.partition(":")
            if re.fullmatch(r"[A-Za-z_][\w.\-/]*", name):
                yield "word", name
                yield "op", ":"
                yield "word", rest
                continue
        if kind == "quoted":
            value = re.sub(r"\\(.)", r"\1", value)
        yield kind, value


def _either(tokens: list[tuple[str, str]], place: int, text: str) -> tuple[Predicate, int]:
    first, place = _both(tokens, place, text)
    parts = [first]
    while place < len(tokens) and tokens[place] == ("word", "OR"):
        part, place = _both(tokens, place + 1, text)
        parts.append(part)
    return (lambda document: any(part(document) for part in parts)), place


def _both(tokens: list[tuple[str, str]], place: int, text: str) -> tuple[Predicate, int]:
    parts: list[Predicate] = []
    while place < len(tokens) and tokens[place] != ("word", "OR") and tokens[place][0] != "close":
        if tokens[place] == ("word", "AND"):
            place += 1
            continue
        part, place = _one(tokens, place, text)
        parts.append(part)
    if not parts:
        raise _refuse(text)
    return (lambda document: all(part(document) for part in parts)), place


def _one(tokens: list[tuple[str, str]], place: int, text: str) -> tuple[Predicate, int]:
    kind, value = tokens[place]
    if (kind, value) == ("word", "NOT"):
        inner, place = _one(tokens, place + 1, text)
        return (lambda document: not inner(document)), place
    if kind == "open":
        inner, place = _either(tokens, place + 1, text)
        if place >= len(tokens) or tokens[place][0] != "close":
            raise _refuse(text)
        return inner, place + 1
    negate = kind == "word" and value.startswith("-")
    path, place = _path(tokens, place)
    if place + 1 >= len(tokens) or tokens[place][0] != "op":
        raise _refuse(text)
    operator = tokens[place][1]
    if tokens[place + 1][0] == "open":
        return _alternatives(path, operator, tokens, place + 2, text)
    wanted = tokens[place + 1][1]
    compare = _comparison(path.removeprefix("-"), operator, wanted)
    return (lambda document: compare(document) != negate), place + 2


def _path(tokens: list[tuple[str, str]], place: int) -> tuple[str, int]:
    """A field name, whose parts may be quoted: labels."a.b"."""
    kind, value = tokens[place]
    path, place = (f'"{value}"' if kind == "quoted" else value), place + 1
    while path.endswith(".") and place < len(tokens) and tokens[place][0] == "quoted":
        path, place = f'{path}"{tokens[place][1]}"', place + 1
    return path, place


def _alternatives(
    path: str, operator: str, tokens: list[tuple[str, str]], place: int, text: str
) -> tuple[Predicate, int]:
    """`field=("a" OR "b")`."""
    parts: list[Predicate] = []
    while place < len(tokens) and tokens[place][0] != "close":
        if tokens[place] != ("word", "OR"):
            parts.append(_comparison(path, operator, tokens[place][1]))
        place += 1
    if place >= len(tokens) or not parts:
        raise _refuse(text)
    return (lambda document: any(part(document) for part in parts)), place + 1


def _comparison(path: str, operator: str, wanted: str) -> Predicate:
    def compare(document: dict[str, Any]) -> bool:
        value = lookup(document, path)
        if isinstance(value, list) and operator in ("=", ":"):
            return any(_holds(str(item), operator, wanted, path) for item in value)
        if operator == ":" and wanted == "*":
            return value is not None
        if operator == ":" and isinstance(value, dict):
            return wanted in value
        if value is None:
            return operator in ("!=", "!~")
        return _holds(_as_text(value), operator, wanted, path)

    return compare


def _holds(value: str, operator: str, wanted: str, path: str) -> bool:
    if operator == ":":
        return wanted.strip("*").lower() in value.lower()
    if operator in ("=~", "!~"):
        return (re.search(wanted, value) is not None) == (operator == "=~")
    if operator in ("=", "!="):
        if wanted.endswith("*"):
            return value.startswith(wanted[:-1]) == (operator == "=")
        return (value == wanted) == (operator == "=")
    left, right = _ordered(value, wanted, path)
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[
        operator
    ]


def _ordered(value: str, wanted: str, path: str) -> tuple[Any, Any]:
    if path == "severity":
        return _severity(value), _severity(wanted)
    if re.match(r"\d{4}-\d\d-\d\dT", wanted):
        return _stamp(value), _stamp(wanted)
    try:
        return float(value), float(wanted)
    except ValueError:
        return value, wanted


def _stamp(text: str) -> str:
    """A timestamp that compares as text: UTC with nine digits after the point."""
    from datetime import UTC, datetime

    found = re.fullmatch(r"(.*?\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:?\d\d)?", text)
    if found is None:
        raise GoogleError(400, f"Unparseable filter: invalid timestamp {text}")
    zone = (found.group(3) or "Z").replace("Z", "+00:00")
    whole = datetime.fromisoformat(found.group(1) + zone).astimezone(UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{(found.group(2) or '').ljust(9, '0')}"


def _severity(name: str) -> int:
    return SEVERITIES.index(name.upper()) if name.upper() in SEVERITIES else 0


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _parts(path: str) -> list[str]:
    return [
        quoted or plain
        for quoted, plain in re.findall(r'"([^"]*)"|([^."]+)', path)
        if quoted or plain
    ]


def _refuse(text: str) -> GoogleError:
    return GoogleError(400, f"Invalid filter: {text}", reason="INVALID_FILTER")
