"""Numbers as small pictures made of characters: curves of bounded length, sparklines, bars, plots.

Values flow in, text flows out. A `Curve` keeps at most a fixed number of points of a series of any
length, thinned evenly, so that 500 runs of a million steps cost what 500 short ones do. Left out:
colours, and where it is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
EIGHTHS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588"
# bits of a braille cell: left column top to bottom, then right column
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


class Curve:
    """A series of (step, value), thinned to a bounded number of points."""

    def __init__(self, *, limit: int = 128) -> None:
        self.limit = limit
        self.steps: list[int] = []
        self.values: list[float] = []
        self._stride = 1
        self._seen = 0

    def add(self, step: int, value: float | None) -> None:
        """Add a point; one at an earlier step replaces what came after it (a resumed run)."""
        if value is None or not math.isfinite(value):
            return
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self._seen += 1
        if self._seen % self._stride and self.steps:
            return
        self.steps.append(step)
        self.values.append(float(value))
        if len(self.steps) > self.limit:
            del self.steps[1::2], self.values[1::2]
            self._stride *= 2


def spark(values: Sequence[float], *, width: int) -> str:
    """Draw the whole series in `width` characters, lowest value lowest."""
    if not values or width < 1:
        return ""
    shown = resample(values, width=width)
    low, high = min(shown), max(shown)
    span = high - low
    if span <= 0:
        return BLOCKS[3] * len(shown)
    return "".join(BLOCKS[min(7, int((one - low) / span * 8))] for one in shown)


def resample(values: Sequence[float], *, width: int) -> list[float]:
    """Return at most `width` means over equal parts of the series."""
    count = len(values)
    if count <= width:
        return list(values)
    edges = [round(number * count / width) for number in range(width + 1)]
    return [sum(values[left:right]) / (right - left) for left, right in pairwise(edges)]


def _stretched(values: Sequence[float], width: int) -> list[float]:
    """Straight lines through a series, one value for each of `width` places."""
    last = len(values) - 1
    found = []
    for place in range(width):
        exact = place * last / max(1, width - 1)
        left = min(int(exact), max(0, last - 1))
        right = min(left + 1, last)
        found.append(values[left] + (values[right] - values[left]) * (exact - left))
    return found


def bar(share: float, *, width: int) -> str:
    """Draw a share between 0 and 1 as a bar, in eighths of a character."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    text = EIGHTHS[8] * full + (EIGHTHS[part] if part else "")
    return text.ljust(width, "\u2500")[:width] if width > 0 else ""


def plot(values: Sequence[float], *, width: int, height: int) -> list[str]:
    """Draw a curve in braille dots, with the highest and lowest value at its left."""
    if not values or width < 12 or height < 1:
        return []
    low, high = min(values), max(values)
    labels = [f"{high:.3g}", f"{low:.3g}"]
    margin = max(map(len, labels)) + 1
    columns = width - margin
    cells = [[0] * columns for _ in range(height)]
    rows, span = height * 4, (high - low) or 1.0
    before: int | None = None
    for x, value in enumerate(_stretched(resample(values, width=columns * 2), columns * 2)):
        y = min(rows - 1, int((high - value) / span * rows))
        start = y if before is None else before + (y > before) - (y < before)
        for dot in range(min(start, y), max(start, y) + 1):
            cells[dot // 4][x // 2] |= _DOTS[dot % 4][x % 2]
        before = y
    lines = ["".join(chr(0x2800 + bits) for bits in row) for row in cells]
    heads = ["" for _ in lines]
    heads[-1], heads[0] = labels[1], labels[0]
    return [f"{head:>{margin - 1}} {line}" for head, line in zip(heads, lines, strict=True)]
