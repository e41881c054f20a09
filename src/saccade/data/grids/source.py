"""Puzzles from files as a source of samples for training and scoring.

An `ArcSource`, `ColumnsSource` or `ArraysSource` flows in; samples flow out whose facts hold the
arrays that the recipe `recursion` reads (`generate/puzzles.py`): tokens, targets with PAD not asked
for, and the number of the puzzle, the same in the training and the test split of one source;
`digest` tells which puzzles these are. The variant's name rides along under `VARIANT`, so that
votes can be counted per task. Every example of every variant comes once per epoch (the published
sampler draws one variant per task and epoch instead).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from saccade.config.errors import InputError
from saccade.config.grids import ArcSource, ArraysSource, ColumnsSource
from saccade.data.generate.puzzles import IGNORED, puzzle_sample
from saccade.data.grids.arc import Task, largest_shape, read_tasks, task_hash, tasks_in_common
from saccade.data.grids.arrays import PuzzleArrays, build_arc, read_arrays
from saccade.data.grids.canvas import MAX_SIDE, PAD, VOCABULARY, Shape
from saccade.data.grids.columns import MAZE, build_columns
from saccade.data.samples import Sample

VARIANT = "variant"
ARC_LETTERS = " |0123456789"
SUDOKU_LETTERS = " .123456789"
PRINTABLE = " " + "".join(map(chr, range(33, 127)))
MAZE_LETTERS = "?" + MAZE
KINDS = {
    VOCABULARY: ("arc", ARC_LETTERS),
    11: ("sudoku", SUDOKU_LETTERS),
    6: ("maze", MAZE_LETTERS),
}
"""What arrays with so many symbols are, as the published builders write them."""


class GridPuzzles:
    """Examples of arrays as samples."""

    def __init__(
        self, arrays: PuzzleArrays, *, letters: str, kind: str, name: str, columns: int
    ) -> None:
        self.arrays = arrays
        self.letters, self.kind, self.name = letters, kind, name
        self.columns = columns
        self.digest = puzzles_digest(arrays.identifiers)
        if not len(arrays.inputs):
            raise InputError(f"{name}: there are no examples in this split")

    @property
    def length(self) -> int:
        """Symbols of a sample."""
        return self.arrays.length

    @property
    def vocabulary(self) -> int:
        """Different symbols, padding included."""
        return self.arrays.vocabulary

    @property
    def identities(self) -> int:
        """Different puzzles."""
        return len(self.arrays.identifiers)

    def __len__(self) -> int:
        return len(self.arrays.inputs)

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        puzzle = self.arrays.puzzle_of(position)
        identifier = int(self.arrays.puzzle_identifiers[puzzle])
        variant = self.arrays.identifiers[identifier]
        target = self.arrays.labels[position].astype(np.int64)
        return puzzle_sample(
            f"{self.name}-{position}",
            given=np.asarray(self.arrays.inputs[position]),
            target=np.where(target == PAD, IGNORED, target),
            letters=self.letters,
            columns=self.columns,
            kind=self.kind,
            puzzle=identifier,
            facts={VARIANT: variant},
        )

    def groups(self) -> list[list[int]]:
        """Every sample for itself."""
        return [[position] for position in range(len(self))]

    def fingerprint(self) -> str:
        """Equal for equal arrays."""
        digest = hashlib.sha256(repr((self.kind, self.arrays.identifiers)).encode())
        for array in (self.arrays.inputs, self.arrays.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
        return f"{self.kind}:{digest.hexdigest()[:16]}"


class ArcPuzzles(GridPuzzles):
    """One split of ARC tasks; `tasks` are those that are asked, for voting."""

    def __init__(self, source: ArcSource) -> None:
        self.tasks = read_tasks(source.path)[: source.tasks]
        also = _more_tasks(source, asked=self.tasks)
        self.shape = _canvas(source, [*self.tasks, *also])
        both = build_arc(
            also, self.tasks, augmentations=source.augmentations, seed=source.seed, shape=self.shape
        )
        super().__init__(
            both.train if source.split == "train" else both.test,
            letters=ARC_LETTERS,
            kind="arc",
            name=f"{source.path.stem}-{source.split}",
            columns=self.shape[1],
        )
        # equal names do not make equal tasks
        demonstrations = map(task_hash, [*also, *self.tasks])
        self.digest = puzzles_digest([*self.arrays.identifiers, *demonstrations])


class ColumnPuzzles(GridPuzzles):
    """Puzzles of a CSV."""

    def __init__(self, source: ColumnsSource) -> None:
        arrays = build_columns(
            source.path, augmentations=source.augmentations, seed=source.seed, limit=source.limit
        )
        is_maze = arrays.vocabulary == len(MAZE) + 1
        letters, kind = (MAZE_LETTERS, "maze") if is_maze else (SUDOKU_LETTERS, "sudoku")
        columns = round(arrays.length**0.5)
        super().__init__(arrays, letters=letters, kind=kind, name=source.path.stem, columns=columns)


class StoredPuzzles(GridPuzzles):
    """Arrays that another builder wrote."""

    def __init__(self, source: ArraysSource) -> None:
        arrays = read_arrays(source.path, source.split, limit=source.limit)
        other = ("puzzle", PRINTABLE[: arrays.vocabulary].ljust(arrays.vocabulary, "~"))
        kind, letters = KINDS.get(arrays.vocabulary, other)
        side = round(arrays.length**0.5)
        super().__init__(
            arrays, letters=letters, kind=kind, name=f"{source.path.name}-{source.split}",
            columns=side if side * side == arrays.length else arrays.length,
        )  # fmt: skip


def open_grids(source: ArcSource | ColumnsSource | ArraysSource) -> GridPuzzles:
    """The puzzles of a source of files."""
    if isinstance(source, ArcSource):
        return ArcPuzzles(source)
    return ColumnPuzzles(source) if isinstance(source, ColumnsSource) else StoredPuzzles(source)


def puzzles_digest(names: Iterable[str]) -> str:
    """Tells which puzzles have which embedding; empty where there is only one to have."""
    names = list(names)
    if len(names) == 1:
        return ""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _canvas(source: ArcSource, tasks: list[Task]) -> Shape:
    """The canvas asked for, or the smallest on which all grids and their end marks fit."""
    rows, columns = largest_shape(tasks)
    longest = columns if rows == 1 else max(rows, columns)
    wide = source.columns or max(longest, min(MAX_SIDE, longest + 1))
    if longest > MAX_SIDE and source.columns is None:
        wide = longest + 1
    high = source.rows or (1 if rows == 1 else wide)
    if high < rows or wide < columns:
        raise InputError(
            f"{source.path}: a canvas of {high} x {wide} is too small for grids of {rows} x"
            f" {columns}\n  fix: larger rows and columns, or leave both out"
        )
    return high, wide


def _more_tasks(source: ArcSource, *, asked: list[Task]) -> list[Task]:
    more = [task for path in source.also for task in read_tasks(path)]
    shared = tasks_in_common(more, asked)
    if shared:
        raise InputError(
            f"{source.path}: {len(shared)} tasks that are asked are also trained on whole, such as"
            f" {shared[0][1]} (there {shared[0][0]})"
            "\n  fix: take sets without common tasks (ARC-AGI-2's training set holds tasks of"
            " ARC-AGI-1's evaluation set)"
        )
    return more
