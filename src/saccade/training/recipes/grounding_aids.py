"""Two aids for learning places: what each visual token shows, and where to look while writing.

In go boxes of what a page shows (its accessibility tree) and the pictures of an episode; out come
labels for every cell of every picture, and for every digit of a place the cells it speaks of. Both
use facts that only known pages have, and neither exists at inference. Left out: weights of losses.

Shapes: N cells of a picture, D digits, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saccade.data.boxes import Box
from saccade.data.generate.drawing import COLORS, SHAPES

OFFSETS, PLACES = 10, 16
"""Parts of a cell's sides in which a thing's centre lies; of a picture's, in which a cell does."""
THING_TARGETS = {
    "color": 1 + len(COLORS),
    "shape": 1 + len(SHAPES),
    "across": 1 + OFFSETS,
    "down": 1 + OFFSETS,
    "x": 1 + 10,
    "y": 1 + 10,
    "x_second": 1 + 10,
    "y_second": 1 + 10,
    "column": 1 + PLACES,
    "row": 1 + PLACES,
}
"""What a cell holds and where it lies, as class counts; class 0 is no thing's centre.

A thing's centre is asked for as its offset in the cell, and as the first two digits of its place on
the picture, which is what a policy writes. Every cell is asked for its own place: a tower that was
trained to name content has thrown most of that away, and the few cells with a thing in them are
long in bringing it back.
"""


@dataclass(frozen=True)
class Thing:
    """A coloured shape on a page; class numbers from 1."""

    box: Box
    color: int
    shape: int


def things_of(tree: Sequence[Mapping[str, Any]]) -> list[Thing]:
    """The page's coloured shapes, by what the accessibility tree calls them (`red star`)."""
    found = []
    for node in tree:
        words = str(node["name"]).split()
        color = next((1 + i for i, name in enumerate(COLORS) if name in words), 0)
        shape = next((1 + i for i, name in enumerate(SHAPES) if name in words), 0)
        if color and shape:
            found.append(Thing(Box(*node["box"]), color, shape))
    return found


def cell_labels(
    things: Sequence[Thing], *, view: Box, grid: tuple[int, int]
) -> dict[str, list[int]]:
    """{name: [N] classes} of a picture's cells (rows x columns), of the thing centred in each."""
    rows, columns = grid
    labels = {name: [0] * (rows * columns) for name in THING_TARGETS}
    labels["column"] = [1 + c * PLACES // columns for _ in range(rows) for c in range(columns)]
    labels["row"] = [1 + r * PLACES // rows for r in range(rows) for _ in range(columns)]
    for thing in things:
        x, y = thing.box.seen_in(view).center
        if not (0 <= x < 1 and 0 <= y < 1):
            continue
        column, row = int(x * columns), int(y * rows)
        cell = row * columns + column
        labels["color"][cell], labels["shape"][cell] = thing.color, thing.shape
        labels["across"][cell] = 1 + int((x * columns - column) * OFFSETS)
        labels["down"][cell] = 1 + int((y * rows - row) * OFFSETS)
        labels["x"][cell], labels["y"][cell] = 1 + int(x * 10), 1 + int(y * 10)
        labels["x_second"][cell] = 1 + int(x * 100) % 10
        labels["y_second"][cell] = 1 + int(y * 100) % 10
    return labels


def cells_under(box: Box, *, grid: tuple[int, int]) -> Tensor:
    """[N] bool: the cells of a picture that a box (in its shares) touches; the nearest if none."""
    rows, columns = grid
    here = box.clamped()
    first_x, first_y = (
        min(columns - 1, int(here.left * columns)),
        min(rows - 1, int(here.top * rows)),
    )
    last_x = max(first_x, min(columns - 1, int(here.right * columns - 1e-6)))
    last_y = max(first_y, min(rows - 1, int(here.bottom * rows - 1e-6)))
    under = torch.zeros(rows, columns, dtype=torch.bool)
    under[first_y : last_y + 1, first_x : last_x + 1] = True
    return under.flatten()
