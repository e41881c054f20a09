"""Variants of a task that keep its rule: turned or mirrored, with colours exchanged; all undoable.

In goes a task and a generator, out come distinct variants, each with the name that says how it was
made: `task|||t<dihedral>|||<ten digits>`, as published with HRM and TRM. One variant applies one
transform to every input and output alike, so the rule stays true; `undo` is the exact inverse.
Dihedral numbers: 0 identity, 1-3 turned left once to thrice, 4 mirrored left-right, 5 mirrored
up-down, 6 transposed, 7 the other transposition. Colour 0 (background) stays; 1..9 are permuted.
Sudoku has its own symmetries (`SudokuShuffle`). Left out: shifting on the canvas (`canvas.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saccade.data.grids.arc import Pair, Task, pair_hash
from saccade.data.grids.canvas import COLORS, Grid

SEPARATOR = "|||"
DIHEDRAL = 8
INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
FLIPS = (0, 2, 4, 5)
"""The symmetries that keep the number of rows, for canvases that are not square."""
TRIES = 5
"""Draws per wanted variant before a task with few distinct ones is left with fewer."""


def turn(grid: Grid, number: int) -> Grid:
    """Apply one of the eight symmetries of the square."""
    if number < 4:
        return np.rot90(grid, k=number)
    if number == 4:
        return np.fliplr(grid)
    if number == 5:
        return np.flipud(grid)
    if number == 6:
        return grid.T
    return np.fliplr(np.rot90(grid))


@dataclass(frozen=True)
class Augmentation:
    """One transform of grids; `colors[c]` is what colour c becomes."""

    dihedral: int = 0
    colors: tuple[int, ...] = tuple(range(COLORS))

    def __post_init__(self) -> None:
        if self.dihedral not in range(DIHEDRAL) or sorted(self.colors) != list(range(COLORS)):
            raise ValueError(f"t{self.dihedral} with colours {self.colors} is no augmentation")

    def apply(self, grid: Grid) -> Grid:
        """Exchange colours, then turn."""
        return np.ascontiguousarray(turn(np.array(self.colors, np.uint8)[grid], self.dihedral))

    def undo(self, grid: Grid) -> Grid:
        """The exact inverse of `apply`."""
        back = np.argsort(self.colors).astype(np.uint8)
        return np.ascontiguousarray(back[turn(grid, INVERSE[self.dihedral])])

    def apply_to(self, pair: Pair) -> Pair:
        """Both grids of a pair by the same transform."""
        output = None if pair.output is None else self.apply(pair.output)
        return Pair(input=self.apply(pair.input), output=output)

    def name(self, task: str) -> str:
        """What a variant of the task is called."""
        digits = "".join(map(str, self.colors))
        return f"{task}{SEPARATOR}t{self.dihedral}{SEPARATOR}{digits}"


def parse_name(name: str) -> tuple[str, Augmentation]:
    """Split a variant's name into the task's and the transform; a plain name is the identity."""
    if SEPARATOR not in name:
        return name, Augmentation()
    task, turned, digits = name.rsplit(SEPARATOR, 2)
    return task, Augmentation(int(turned.removeprefix("t")), tuple(int(d) for d in digits))


def draw_augmentation(
    rng: np.random.Generator, *, turns: Sequence[int] = range(DIHEDRAL)
) -> Augmentation:
    """Draw one of the symmetries and a permutation of the colours 1..9."""
    dihedral = turns[int(rng.integers(len(turns)))]
    colors = (0, *(int(c) for c in 1 + rng.permutation(COLORS - 1)))
    return Augmentation(dihedral, colors)


def variants(
    task: Task, *, count: int, rng: np.random.Generator, turns: Sequence[int] = range(DIHEDRAL)
) -> list[Task]:
    """The task itself, then up to `count` distinct variants of it.

    Variants are compared by all their pairs. A task with few distinct variants (say, of two
    colours and no form) is left with fewer after five draws per wanted one.
    """
    found = [task]
    seen = {_content(task)}
    for _ in range(TRIES * count):
        if len(found) > count:
            break
        chosen = draw_augmentation(rng, turns=turns)
        made = Task(
            name=chosen.name(task.name),
            train=tuple(chosen.apply_to(pair) for pair in task.train),
            test=tuple(chosen.apply_to(pair) for pair in task.test),
        )
        content = _content(made)
        if content not in seen:
            seen.add(content)
            found.append(made)
    return found


def _content(task: Task) -> tuple[str, ...]:
    return tuple(sorted(pair_hash(pair) for pair in task.pairs()))


@dataclass(frozen=True)
class SudokuShuffle:
    """A change of a 9x9 Sudoku that keeps it one: digits renamed, bands and stacks shuffled.

    `rows[i]` is the old row shown in row i (likewise columns); `digits[d]` what digit d becomes,
    0 (blank) staying.
    """

    transpose: bool
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    digits: tuple[int, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> SudokuShuffle:
        """Draw each part independently."""

        def lines() -> tuple[int, ...]:
            bands = rng.permutation(3)
            return tuple(int(3 * band + line) for band in bands for line in rng.permutation(3))

        digits = (0, *(int(d) for d in 1 + rng.permutation(9)))
        return cls(bool(rng.integers(2)), lines(), lines(), digits)

    def apply(self, board: Grid) -> Grid:
        """Transpose, move rows and columns, rename digits."""
        moved = (board.T if self.transpose else board)[np.ix_(self.rows, self.columns)]
        return np.array(self.digits, np.uint8)[moved]

    def undo(self, board: Grid) -> Grid:
        """The exact inverse of `apply`."""
        named = np.argsort(self.digits).astype(np.uint8)[board]
        back = named[np.ix_(np.argsort(self.rows), np.argsort(self.columns))]
        return np.ascontiguousarray(back.T if self.transpose else back)
