"""A grid of colours as a fixed sequence of tokens, and back.

In goes a grid (rows x columns of 0..9), out comes a canvas read row by row: 0 = nothing (PAD,
ignored in labels), 1 = end (EOS, drawn along the lower and the right edge of the grid), 2..11 = the
ten colours. This is the layout published with HRM and TRM, whose canvas is 30 x 30 (900 tokens, 12
symbols); smaller ones serve smaller puzzles. Undoing it is cropping the largest rectangle at the
corner that is free of EOS and PAD. Left out: augmentation (`augment.py`).

Shapes: H, W rows and columns of a grid, R, C those of the canvas.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.uint8]
"""[H, W], values 0..9."""

PAD, EOS, FIRST_COLOR = 0, 1, 2
COLORS = 10
VOCABULARY = FIRST_COLOR + COLORS
MAX_SIDE = 30
Shape = tuple[int, int]
PUBLISHED: Shape = (MAX_SIDE, MAX_SIDE)


def place(grid: Grid, *, shape: Shape = PUBLISHED, row: int = 0, column: int = 0) -> Grid:
    """Put a grid [H, W] onto a canvas with its corner at (row, column) -> tokens [R*C]."""
    height, width = grid.shape
    bottom, right = row + height, column + width
    if row < 0 or column < 0 or bottom > shape[0] or right > shape[1]:
        raise ValueError(f"a {height}x{width} grid at ({row}, {column}) leaves a canvas of {shape}")
    canvas_RC = np.zeros(shape, dtype=np.uint8)
    canvas_RC[row:bottom, column:right] = grid + FIRST_COLOR
    if bottom < shape[0]:
        canvas_RC[bottom, column:right] = EOS
    if right < shape[1]:
        canvas_RC[row:bottom, right] = EOS
    return canvas_RC.reshape(-1)


def crop(tokens: NDArray[np.integer], *, shape: Shape = PUBLISHED) -> Grid:
    """Take the grid at the corner of a canvas [R*C]: the largest rectangle of colours alone.

    An empty canvas gives a grid without cells (shape [0, 0]), which equals no solution.
    """
    canvas_RC = np.asarray(tokens).reshape(shape)
    is_color_RC = (canvas_RC >= FIRST_COLOR) & (canvas_RC < VOCABULARY)
    # columns that are colours from the left, then the narrowest over all rows above
    runs_R = np.minimum.accumulate(np.cumprod(is_color_RC, axis=1).sum(axis=1))
    areas_R = runs_R * np.arange(1, shape[0] + 1)
    if not areas_R.any():
        return np.zeros((0, 0), dtype=np.uint8)
    height = int(areas_R.argmax()) + 1  # the first of equals, as published
    width = int(runs_R[height - 1])
    return (canvas_RC[:height, :width] - FIRST_COLOR).astype(np.uint8)


def draw_offset(
    pair: tuple[Grid, Grid], *, rng: np.random.Generator, shape: Shape = PUBLISHED
) -> tuple[int, int]:
    """Draw one corner at which both grids of a pair fit on the canvas."""
    room = [shape[axis] - max(grid.shape[axis] for grid in pair) for axis in (0, 1)]
    return int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))


def grid_hash(grid: Grid) -> str:
    """SHA-256 of shape and cells: grids of other shapes never collide."""
    digest = hashlib.sha256(bytes(grid.shape))
    digest.update(np.ascontiguousarray(grid, dtype=np.uint8).tobytes())
    return digest.hexdigest()
