"""How models write places: 0-1, 0-1000, or pixels of the picture as they see it.

In go a place as shares of a picture's sides and the size (width, height) at which the model sees
that picture; out come the numbers of one convention, and back. The convention is a property of the
model family and is declared, never guessed from the numbers: what cannot be a number of the
declared one is refused with a sentence that a policy can read. Left out: which picture the numbers
refer to (`environment.py`) and finding numbers in text (`messages.py`).

Writing rounds to a step of the convention, so a round trip is off by at most half a step: 0.00005
(0-1) or 0.0005 (0-1000) of a side, or half a pixel of the picture as shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from saccade.config.errors import InputError
from saccade.data.boxes import Size

Name = Literal["0-1", "0-1000", "pixels"]

NATIVE: tuple[tuple[str, Name], ...] = (
    ("qwen3_vl", "0-1000"),
    ("qwen2_5_vl", "pixels"),
    ("qwen2_vl", "0-1000"),
)
"""First part of a model type -> what the family was trained to write."""
DIGITS = 4
"""Decimals of a number of convention 0-1."""


class CoordinateError(ValueError):
    """Numbers that are no place; the message is meant for the policy that wrote them."""


def seen_size(size: Size, *, cell: int, limits: tuple[int, int]) -> Size:
    """What the Qwen-VL image processors make of a picture of `size` (width, height): whole cells,
    and an area within `limits` (least and greatest, in pixels)."""
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
    except ImportError:  # releases that know one image processor only
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
    width, height = size
    height, width = smart_resize(
        height, width, factor=cell, min_pixels=limits[0], max_pixels=limits[1]
    )
    return width, height


def checked(numbers: Sequence[float]) -> tuple[float, ...]:
    """The numbers of a point (2) or a box (4), if they can be one in any convention.

    Raises CoordinateError for another count, for NaN and infinities, and for a box whose corners
    are swapped or which has no area.
    """
    if len(numbers) not in (2, 4):
        raise CoordinateError(f"a place has 2 or 4 numbers, not {len(numbers)}")
    if not all(math.isfinite(number) for number in numbers):
        raise CoordinateError("a place has finite numbers only")
    if len(numbers) == 4:
        left, top, right, bottom = numbers
        if left > right or top > bottom:
            raise CoordinateError("the corners are swapped: write [left, top, right, bottom]")
        if left == right or top == bottom:
            raise CoordinateError("the box has no area")
    return tuple(float(number) for number in numbers)


@dataclass(frozen=True)
class Convention:
    """One way of writing places; `size` is always (width, height) as the model sees the picture."""

    name: Name

    def limits(self, size: Size) -> tuple[float, float]:
        """The largest horizontal and vertical number: those of the right and lower border."""
        if self.name == "pixels":
            return float(size[0]), float(size[1])
        return (1.0, 1.0) if self.name == "0-1" else (1000.0, 1000.0)

    def numbers(self, values: Sequence[float], *, size: Size) -> list[float] | list[int]:
        """Shares of a point or a box as numbers, rounded to the convention's step.

        Shares outside the picture are moved to its border. A box keeps an inside: one that
        rounding would flatten becomes one step wide.
        """
        step = 10**-DIGITS if self.name == "0-1" else 1.0
        limits = self.limits(size)
        steps = [
            min(max(round(value * limits[i % 2] / step), 0), round(limits[i % 2] / step))
            for i, value in enumerate(values)
        ]
        for i in range(2, len(steps)):
            if steps[i] <= steps[i - 2]:
                last = round(limits[i % 2] / step)
                steps[i - 2] = min(steps[i - 2], last - 1)
                steps[i] = steps[i - 2] + 1
        return [round(n * step, DIGITS) for n in steps] if self.name == "0-1" else steps

    def write(self, values: Sequence[float], *, size: Size) -> str:
        """Shares of a point or a box as text: `[12, 34, 56, 78]`."""
        form = f".{DIGITS}f" if self.name == "0-1" else "d"
        return "[" + ", ".join(format(n, form) for n in self.numbers(values, size=size)) + "]"

    def read(self, numbers: Sequence[float], *, size: Size) -> tuple[float, ...]:
        """Numbers of a point or a box as shares.

        Raises CoordinateError for what is no place (see `checked`) and for a number that this
        convention does not have.
        """
        places = checked(numbers)
        limits = self.limits(size)
        for i, number in enumerate(places):
            if not 0 <= number <= limits[i % 2]:
                axis = ("across", "down")[i % 2]
                raise CoordinateError(
                    f"{number:g} is outside the picture: numbers {axis} go from 0 to"
                    f" {limits[i % 2]:g}"
                )
        return tuple(number / limits[i % 2] for i, number in enumerate(places))

    def said(self) -> str:
        """The convention in words, for a prompt."""
        if self.name == "pixels":
            return "pixels of the picture"
        return f"numbers from 0 to {self.name.partition('-')[2]} across and down"


def convention_of(name: str, *, model_type: str) -> Convention:
    """The convention `config.grounding.coordinates` names; `auto` is the model family's own.

    Raises InputError where the family is unknown: a guess would score as a model that fails.
    """
    if name in ("0-1", "0-1000", "pixels"):
        return Convention(name)  # type: ignore[arg-type]
    for prefix, native in NATIVE:
        if model_type.startswith(prefix):
            return Convention(native)
    raise InputError(
        f"grounding.coordinates={name}: how models of type {model_type!r} write coordinates is"
        " not known\n  fix: set grounding.coordinates to 0-1, 0-1000 or pixels"
    )
