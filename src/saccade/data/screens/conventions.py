"""What the four numbers of a published box mean, and files that contradict what they claim.

Numbers of annotation files flow in; edges (left, top, right, bottom) in the file's own unit flow
out. Public sets write either [x, y, width, height] or [x1, y1, x2, y2], and reading one as the
other gives scores that look plausible and mean nothing. A box that leaves its picture or has no
inside under the declared meaning speaks against it: `contradiction` weighs a whole file. Left out:
how models write coordinates (`grounding/coordinates.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Meaning = Literal["xywh", "xyxy"]
Edges = tuple[float, float, float, float]
Sides = tuple[float, float]
"""Width and height of a picture in the unit of its boxes."""

SPELT: dict[Meaning, str] = {"xywh": "[x, y, width, height]", "xyxy": "[x1, y1, x2, y2]"}
OTHER: dict[Meaning, Meaning] = {"xywh": "xyxy", "xyxy": "xywh"}
SLACK_PIXELS = 1.0
"""A published edge may lie this far outside its picture: both ends were rounded."""
SLACK_SHARE = 2e-3
"""The same for boxes in shares of a picture."""


@dataclass(frozen=True)
class Noted:
    """A row's box as it stands in the file; `sides` is None where the picture is not known."""

    numbers: Edges
    sides: Sides | None
    where: str


def four_numbers(value: Any) -> Edges | None:
    """Four finite numbers, or None for anything else."""
    found = finite_numbers(value, count=4)
    return None if found is None else (found[0], found[1], found[2], found[3])


def finite_numbers(value: Any, *, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers as floats, or None for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        return None
    if any(isinstance(one, bool) or not isinstance(one, int | float) for one in value):
        return None
    return tuple(map(float, value)) if all(map(math.isfinite, value)) else None


def edges_of(numbers: Edges, *, meaning: Meaning) -> Edges:
    """Left, top, right, bottom."""
    x, y, third, fourth = numbers
    return (x, y, x + third, y + fourth) if meaning == "xywh" else numbers


def slack_of(sides: Sides) -> float:
    """How far outside a picture an edge may lie, in the unit of its sides."""
    return SLACK_SHARE if sides == (1.0, 1.0) else SLACK_PIXELS


def fault_of(edges: Edges, *, sides: Sides | None) -> str:
    """What is wrong with a box, in words that follow "the box"; empty for a sound one."""
    left, top, right, bottom = edges
    if not (left < right and top < bottom):
        return "has no inside"
    if sides is None:
        return "starts left of or above its picture" if min(left, top) < -SLACK_PIXELS else ""
    slack = slack_of(sides)
    inside = min(left, top) >= -slack and right <= sides[0] + slack and bottom <= sides[1] + slack
    return "" if inside else f"leaves its picture of {sides[0]:g} x {sides[1]:g}"


def contradiction(boxes: Sequence[Noted], *, meaning: Meaning) -> str:
    """Why a file's boxes cannot mean what they are declared to mean; empty where they can.

    The file speaks against the declaration when fewer of its boxes are at fault under the other
    meaning. Where both fit, or both fit equally badly, the declaration holds, and faulty rows
    report themselves.
    """
    at_fault = [
        (one, fault)
        for one in boxes
        if (fault := fault_of(edges_of(one.numbers, meaning=meaning), sides=one.sides))
    ]
    if not at_fault:
        return ""
    other = OTHER[meaning]
    left_over = sum(
        bool(fault_of(edges_of(one.numbers, meaning=other), sides=one.sides)) for one in boxes
    )
    if left_over >= len(at_fault):
        return ""
    first, fault = at_fault[0]
    shown = ", ".join(f"{number:g}" for number in first.numbers)
    rest = "all fit" if not left_over else f"all but {left_over} fit"
    return (
        f"{first.where}: read as {SPELT[meaning]}, bbox [{shown}] {fault}, as do"
        f" {len(at_fault)} of {len(boxes)} boxes of this file; read as {SPELT[other]}, {rest}"
        f"\n  fix: boxes={other}; on the command line --boxes {other}"
    )
