"""The configuration of puzzles from files: ARC tasks, columns of Sudoku or mazes, arrays.

Part of `schema_data.py`. Imports pydantic only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from saccade.config.nodes import Node, NonNegativeInt


class ArcSource(Node):
    """ARC tasks (also ConceptARC, mini-ARC, 1D-ARC): a `*_challenges.json`, or task files."""

    type: Literal["arc"]
    """Kind of source."""
    path: Path
    """Folder or file of the tasks that are asked."""
    split: Literal["train", "test"] = "train"
    """`train` = their demonstrations and all of `also`; `test` = their test inputs."""
    also: list[Path] = []
    """Further tasks, trained on whole, tests included (never those that are asked)."""
    tasks: PositiveInt | None = None
    """Use only the first tasks of `path`."""
    augmentations: NonNegativeInt = 0
    """Variants of each task besides itself: turned, mirrored, colours exchanged."""
    rows: Annotated[int, Field(ge=1, le=128)] | None = None
    """Rows of the canvas; default: 1 when every grid is one row, else as many as columns. On a
    canvas that is not square variants are mirrored but not turned."""
    columns: Annotated[int, Field(ge=1, le=128)] | None = None
    """Columns of the canvas; default: the longest edge of a grid plus one for the end mark, but
    the published 30 where that is enough without."""
    seed: NonNegativeInt = 0
    """Seed of variants and of places on the canvas; the same in train and test."""


class ColumnsSource(Node):
    """Puzzles as lines of `source,question,answer,rating` (Sudoku, mazes), as HRM and TRM use."""

    type: Literal["columns"]
    """Kind of source."""
    path: Path
    """The CSV."""
    augmentations: NonNegativeInt = 0
    """Versions of each puzzle besides itself, by its own symmetries."""
    limit: PositiveInt | None = None
    """Use only the first puzzles."""
    seed: NonNegativeInt = 0
    """Seed of the versions."""


class ArraysSource(Node):
    """Puzzles as the folders of `.npy` arrays that the builders of HRM and TRM write."""

    type: Literal["arrays"]
    """Kind of source."""
    path: Path
    """Folder with a folder per split and `identifiers.json`."""
    split: str = "train"
    """The split: a folder below `path` with `dataset.json` and `all__*.npy`."""
    limit: PositiveInt | None = None
    """Use only the first examples."""
