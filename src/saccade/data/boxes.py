"""Boxes on a picture, as shares of its sides.

Everything that knows where something lies speaks of it in this one unit, whatever pixels or numbers
it was written in. Left out: how models write coordinates (`grounding/coordinates.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Size = tuple[int, int]
"""Width and height in pixels."""


class Box(NamedTuple):
    """Left, top, right and bottom edge; 0 is the left or upper border, 1 the opposite one."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def from_pixels(
        cls, left: float, top: float, right: float, bottom: float, *, size: Size
    ) -> Box:
        """Edges in pixels of a picture of `size` (width, height)."""
        width, height = size
        return cls(left / width, top / height, right / width, bottom / height)

    def pixels(self, size: Size) -> tuple[float, float, float, float]:
        """Edges in pixels of a picture of `size`."""
        width, height = size
        return self.left * width, self.top * height, self.right * width, self.bottom * height

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def area(self) -> float:
        """Share of the picture; 0 for a box without an inside."""
        return max(0.0, self.width) * max(0.0, self.height)

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def contains(self, x: float, y: float) -> bool:
        """Half-open, as public judges have it: left and top edge belong to the box."""
        return self.left <= x < self.right and self.top <= y < self.bottom

    def clamped(self) -> Box:
        """The part inside the picture."""
        return Box(*(min(1.0, max(0.0, edge)) for edge in self))

    def inside(self, outer: Box) -> Box:
        """This box, given in shares of `outer`, in shares of what `outer` is in shares of."""
        return Box(
            outer.left + self.left * outer.width,
            outer.top + self.top * outer.height,
            outer.left + self.right * outer.width,
            outer.top + self.bottom * outer.height,
        )

    def seen_in(self, view: Box) -> Box:
        """This box in shares of `view`: what `inside` undoes."""
        return Box(
            (self.left - view.left) / view.width,
            (self.top - view.top) / view.height,
            (self.right - view.left) / view.width,
            (self.bottom - view.top) / view.height,
        )


WHOLE = Box(0.0, 0.0, 1.0, 1.0)


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around all of them."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


def iou(one: Box, other: Box) -> float:
    """Intersection over union; 0 where one of them has no inside."""
    shared = Box(
        max(one.left, other.left), max(one.top, other.top),
        min(one.right, other.right), min(one.bottom, other.bottom),
    )  # fmt: skip
    common = shared.area if shared.width > 0 and shared.height > 0 else 0.0
    union = one.area + other.area - common
    return common / union if union > 0 else 0.0
