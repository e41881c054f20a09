"""Puzzles as text in columns: `source,question,answer,rating`, one puzzle per line.

A CSV as published for Sudoku-Extreme and Maze-Hard flows in, `PuzzleArrays` flow out: each
character becomes its place in the puzzle's alphabet plus one, 0 stays PAD. The alphabet is told by
the characters: digits with `.` or 0 for a blank cell (blank 1, digits 2..10), or a maze of
`# SGo` (wall, way, start, goal, path). Every puzzle is a group of its own, plus its variants: the
symmetries of Sudoku, or the eight of the square for mazes. `rating` is how hard the puzzle is.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saccade.config.errors import InputError
from saccade.data.grids.arrays import PuzzleArrays
from saccade.data.grids.augment import DIHEDRAL, SudokuShuffle, turn
from saccade.data.grids.canvas import Grid
from saccade.data.samples import DataError

COLUMNS = ("source", "question", "answer", "rating")
DIGITS = "0123456789"
MAZE = "# SGo"


@dataclass(frozen=True, eq=False)
class Puzzle:
    """One line: cells [H, W] as places in `alphabet`, and how hard it is."""

    question: Grid
    answer: Grid
    alphabet: str
    rating: float
    source: str
    where: str


def read_columns(path: Path, *, limit: int | None = None) -> Iterator[Puzzle]:
    """Read puzzles line by line; raises `DataError` naming the line of a broken one."""
    if not path.is_file():
        raise InputError(f"{path}: no such file\n  fix: a CSV with columns {', '.join(COLUMNS)}")
    try:
        yield from _read(path, limit=limit)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"this is not a CSV ({error})", where=str(path), fix="save it as UTF-8 text"
        ) from error


def _read(path: Path, *, limit: int | None) -> Iterator[Puzzle]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in ("question", "answer") if name not in (reader.fieldnames or [])]
        if missing:
            raise DataError(
                f"there is no column {missing[0]!r}",
                where=str(path),
                fix=f"the first line names the columns {','.join(COLUMNS)}",
            )
        for count, row in enumerate(reader):
            if limit is not None and count >= limit:
                return
            yield _puzzle(row, where=f"{path}:{reader.line_num}")


def _puzzle(row: dict[str, str | None], *, where: str) -> Puzzle:
    question, answer = row.get("question") or "", row.get("answer") or ""
    side = math.isqrt(len(question))
    if not question or side * side != len(question):
        raise DataError(
            f"the question has {len(question)} cells, which is no square",
            where=where,
            fix="write the grid row by row, without separators",
        )
    if len(answer) != len(question):
        raise DataError(
            f"the answer has {len(answer)} cells, the question {len(question)}",
            where=where,
            fix="both are the same grid",
        )
    question = question.replace(".", "0")
    digits = set(question) <= set(DIGITS)
    alphabet = DIGITS if digits else MAZE
    try:
        rating = float(row.get("rating") or 0)
    except ValueError as error:
        raise DataError("the rating is not a number", where=where, fix="a number or 0") from error
    return Puzzle(
        question=_cells(question, alphabet, side=side, where=where),
        answer=_cells(answer, alphabet, side=side, where=where),
        alphabet=alphabet,
        rating=rating,
        source=row.get("source") or "",
        where=where,
    )


def _cells(text: str, alphabet: str, *, side: int, where: str) -> Grid:
    places = [alphabet.find(character) for character in text]
    if min(places) < 0:
        raise DataError(
            f"unknown character {text[places.index(-1)]!r}",
            where=where,
            fix=f"digits with . for a blank cell, or a maze of {MAZE!r}",
        )
    return np.array(places, dtype=np.uint8).reshape(side, side)


def to_text(tokens: NDArray[np.integer], *, alphabet: str) -> str:
    """Tokens [L] back to characters; PAD becomes a question mark."""
    return "".join("?" if token == 0 else alphabet[int(token) - 1] for token in tokens)


def build_columns(
    path: Path, *, augmentations: int = 0, seed: int = 0, limit: int | None = None
) -> PuzzleArrays:
    """Make arrays of a CSV; the first puzzle of each group is the line as it stands."""
    inputs: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.uint8]] = []
    group_ends = [0]
    shape, alphabet = None, ""
    for index, puzzle in enumerate(read_columns(path, limit=limit)):
        if shape not in (None, (puzzle.question.shape, puzzle.alphabet)):
            raise DataError(
                "another size or alphabet than the lines before",
                where=puzzle.where,
                fix="keep one kind of puzzle per file",
            )
        shape, alphabet = (puzzle.question.shape, puzzle.alphabet), puzzle.alphabet
        rng = np.random.default_rng([seed, index])
        for question, answer in _variants(puzzle, count=augmentations, rng=rng):
            inputs.append(question.reshape(-1) + 1)
            labels.append(answer.reshape(-1) + 1)
        group_ends.append(len(inputs))
    if not inputs:
        raise InputError(f"{path}: there are no puzzles\n  fix: one per line below the header")
    return PuzzleArrays(
        inputs=np.stack(inputs),
        labels=np.stack(labels),
        puzzle_identifiers=np.zeros(len(inputs), np.int32),
        puzzle_indices=np.arange(len(inputs) + 1, dtype=np.int32),
        group_indices=np.array(group_ends, np.int32),
        vocabulary=len(alphabet) + 1,
    )


def _variants(
    puzzle: Puzzle, *, count: int, rng: np.random.Generator
) -> Iterator[tuple[Grid, Grid]]:
    yield puzzle.question, puzzle.answer
    if puzzle.alphabet == DIGITS and puzzle.question.shape == (9, 9):
        for _ in range(count):
            shuffle = SudokuShuffle.draw(rng)
            yield shuffle.apply(puzzle.question), shuffle.apply(puzzle.answer)
    elif puzzle.alphabet == MAZE:
        for number in rng.permutation(np.arange(1, DIHEDRAL))[:count]:
            yield turn(puzzle.question, int(number)), turn(puzzle.answer, int(number))
