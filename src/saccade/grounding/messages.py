"""What the policy is told, and the one parser of what it writes.

In goes the text of one assistant turn; out comes a `Turn`: a tool call, an answer, or why it can
be read as neither. Rewards, rollouts and evaluation all read through here. Rules:

- What stands in `<think>`, in `<tool_response>` (a policy can write one, too) or in a tool call is
  never an answer; an unclosed tag swallows the rest. A stray closing tag of either swallows what
  stood before it.
- A turn with a tool call is a call; what else it says does not count.
- The last place written counts: `[x, y]`, `[x1, y1, x2, y2]`, `(x, y)`, `(x1, y1), (x2, y2)`, also
  inside JSON (`point_2d`, `bbox_2d`) or a code fence. Brackets around words are no places.

The parser walks the text once and never backtracks over it: whatever a policy writes, it returns in
time proportional to the length. Left out: what the numbers mean (`coordinates.py`), running a call
(`environment.py`), and tokens (`dialogue.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from saccade.config.grounding import GroundingConfig
from saccade.grounding.coordinates import Convention, CoordinateError, checked

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
LONGEST_CALL = 2000
"""Characters of a tool call beyond which it is not read."""
LONGEST_NUMBER = 32
"""Characters of a number beyond which it is none."""

_TOOLS = {
    "zoom": "Show a part of the latest picture enlarged.",
    "inspect": "List the elements of the page's accessibility tree in a part of the picture.",
    "wait": "Let the page finish loading and show it again.",
}

_TAG = re.compile(r"<(/?)(think|tool_call|tool_response)>")
_BRACKET = re.compile(r"[\[\](){}]")
_CLOSES = {"]": "[", ")": "("}
_NUMBER = re.compile(
    r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|[-+]?(?:nan|inf|infinity)", re.I | re.A
)
_NAMED = re.compile(r"[a-z]\w?[=:]", re.I)
_BETWEEN = re.compile(r"\s*,\s*")
_CONFIDENCE = re.compile(
    r"confidence[\"']?\s{0,4}(?:is|[:=])?\s{0,4}(\d{1,3}(?:\.\d{1,9})?)\s?(%?)", re.I | re.A
)


@dataclass(frozen=True)
class Call:
    """A tool call as written; `problem` says why it cannot be run, empty if it can."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Turn:
    """One assistant turn as read.

    `calls` counts every tool call in it, so that each can be priced; `call` is the first one.
    `numbers` are the 2 or 4 numbers of an answer, unconverted. `stated_confidence` is in 0..1.
    `problem` is empty only for an answer and for a call that can be run.
    """

    kind: Literal["call", "answer", "unreadable"]
    call: Call | None = None
    numbers: tuple[float, ...] | None = None
    stated_confidence: float | None = None
    problem: str = ""
    reasoning: str = ""
    calls: int = 0


def read_turn(text: str) -> Turn:
    """Read one assistant turn (without its end mark). Never raises and cannot hang."""
    plain, thoughts, bodies = _parts(text)
    if bodies:
        call = _call_of(bodies[0])
        if len(bodies) > 1:
            call = Call(call.name, problem=f"{len(bodies)} calls in one turn: make one at a time")
        return Turn("call", call=call, problem=call.problem, calls=len(bodies),
                    reasoning=_joined(thoughts, plain))  # fmt: skip
    groups = list(_places(plain))
    if not groups:
        reason = "no place in the answer" if plain.strip() else "no answer"
        return Turn("unreadable", problem=reason, reasoning=_joined(thoughts, plain))
    numbers, start = groups[-1]
    reasoning = _joined(thoughts, plain[:start].rstrip("[({ \t\n"))
    try:
        place = checked(numbers)
    except CoordinateError as error:
        return Turn("unreadable", problem=str(error), reasoning=reasoning)
    return Turn("answer", numbers=place, stated_confidence=_stated(plain), reasoning=reasoning)


def write_call(name: str, arguments: str) -> str:
    """A tool call as the chat template of Qwen3-VL writes it; `arguments` is a JSON object."""
    return f'{CALL_OPEN}\n{{"name": "{name}", "arguments": {arguments}}}\n{CALL_CLOSE}'


def harmless(text: str) -> str:
    """Text of a page, a person or a policy with nothing in it that is a mark of the template."""
    return text.replace("<|", "< |").replace("|>", "| >")


def instruction_text(question: str, config: GroundingConfig) -> str:
    """The user's turn beside the screenshot."""
    wants = " State your confidence." if config.reward.stated else ""
    return question.strip() + wants


def system_text(config: GroundingConfig, *, convention: Convention | None = None) -> str:
    """What the policy is told once: how to answer, and that a second look is possible."""
    form = "[left, top, right, bottom]" if config.answer == "box" else "[x, y]"
    lines = [f"Find what the instruction names on the screenshot. Answer with its place as {form}"]
    lines[0] += f", {convention.said()}." if convention else "."
    if config.reward.stated:
        lines.append("After it, state your confidence from 0 to 1, as in `confidence: 0.8`.")
    if "zoom" in config.tools and config.zoom.calls:
        lines.append(
            "If it is too small to be sure, call zoom first. Numbers always refer to the latest"
            " picture you were shown."
        )
    if "wait" in config.tools:
        lines.append("If the page is still loading, call wait first.")
    return " ".join(lines)


def tool_schemas(names: Sequence[str]) -> list[dict[str, Any]]:
    """JSON schemas of the named tools, as chat templates take them."""
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": _TOOLS[name],
                "parameters": _nothing() if name == "wait" else _one_box(),
            },
        }
        for name in names
    ]


def _one_box() -> dict[str, Any]:
    box = {
        "type": "array",
        "items": {"type": "number"},
        "description": "[left, top, right, bottom] on the latest picture",
    }
    return {"type": "object", "properties": {"box": box}, "required": ["box"]}


def _nothing() -> dict[str, Any]:
    return {"type": "object", "properties": {}, "required": []}


def _parts(text: str) -> tuple[str, list[str], list[str | None]]:
    """Text outside all tags, thoughts, and the bodies of tool calls (None for an unclosed one)."""
    plain: list[str] = []
    thoughts: list[str] = []
    bodies: list[str | None] = []
    at, inside = 0, ""
    for tag in _TAG.finditer(text):
        closing, name = bool(tag[1]), tag[2]
        if inside and not (closing and name == inside):
            continue
        piece = text[at : tag.start()]
        at = tag.end()
        if inside:
            if name == "think":
                thoughts.append(piece)
            elif name == "tool_call":
                bodies.append(piece)
            inside = ""
        elif not closing:
            plain.append(piece)
            inside = name
        elif name == "tool_call":
            plain.append(piece)
        else:
            # its opening stood in the prompt, or was never written: no answer before it
            if name == "think":
                thoughts.extend([*plain, piece])
            plain.clear()
    rest = text[at:]
    if inside == "tool_call":
        bodies.append(None)
    elif inside == "think":
        thoughts.append(rest)
    elif not inside:
        plain.append(rest)
    return "".join(plain), thoughts, bodies


def _call_of(body: str | None) -> Call:
    if body is None:
        return Call("", problem=f"the call is not closed with {CALL_CLOSE}")
    if not body.strip():
        return Call("", problem="the call is empty")
    if len(body) > LONGEST_CALL:
        return Call("", problem="the call is too long")
    try:
        made = json.loads(body)
    except (ValueError, RecursionError):
        return Call("", problem="the call is not JSON")
    if not isinstance(made, dict) or not isinstance(made.get("name"), str):
        return Call("", problem='a call is {"name": ..., "arguments": {...}}')
    arguments = made.get("arguments", {})
    if not isinstance(arguments, dict):
        return Call(made["name"], problem="the arguments of a call are a JSON object")
    return Call(made["name"], arguments)


def _places(text: str) -> Iterator[tuple[list[float], int]]:
    """The numbers of each bracket that holds numbers only, and where it starts.

    Only innermost brackets are looked into, so that each character is read once. Two pairs joined
    by a comma are the corners of a box; more pairs in a row stay together and are no place.
    """
    run: list[float] = []
    start, end, pairs = 0, -1, 0
    for numbers, begins, ends in _groups(text):
        if run and pairs and len(numbers) == 2 and _joins(text, end, begins):
            run.extend(numbers)  # in place: a policy may write thousands of pairs
            end, pairs = ends, pairs + 1
            continue
        if run:
            yield run, start
        run, start, end, pairs = numbers, begins, ends, int(len(numbers) == 2)
    if run:
        yield run, start


def _joins(text: str, end: int, begin: int) -> bool:
    return begin - end <= 8 and bool(_BETWEEN.fullmatch(text, end, begin))


def _groups(text: str) -> Iterator[tuple[list[float], int, int]]:
    opened: tuple[str, int] | None = None
    for bracket in _BRACKET.finditer(text):
        kind = bracket[0]
        if kind in "[(":
            opened = (kind, bracket.start())
            continue
        if opened and _CLOSES.get(kind) == opened[0]:
            numbers = _numbers(text[opened[1] + 1 : bracket.start()])
            if len(numbers) > 1:
                yield numbers, opened[1], bracket.end()
        opened = None


def _numbers(inside: str) -> list[float]:
    """The numbers between two brackets; none at all where anything else stands there."""
    found = []
    for word in inside.replace(",", " ").split():
        bare = _NAMED.sub("", word, count=1) if word[0].isalpha() else word
        if len(bare) > LONGEST_NUMBER or not _NUMBER.fullmatch(bare):
            return []
        found.append(float(bare))
    return found


def _stated(text: str) -> float | None:
    """The last confidence stated, in 0..1; None where there is none or it is out of range."""
    stated = list(_CONFIDENCE.finditer(text))
    if not stated:
        return None
    said = stated[-1]
    value = float(said[1]) / (100 if said[2] else 1)
    return value if value <= 1 else None


def _joined(thoughts: Sequence[str], plain: str) -> str:
    return "\n".join(part.strip() for part in (*thoughts, plain) if part.strip())
