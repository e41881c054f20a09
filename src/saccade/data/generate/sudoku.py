"""Sudoku of side 4, 6 or 9 drawn on the fly: solved, dug out, graded and varied.

A `SudokuSource` flows in; samples flow out, each a pure function of (seed, split, position). A
puzzle is dug from a random solution while it keeps exactly one, then graded by its clues and by
the guesses that a solver needs which first fills in all that is forced (naked and hidden singles).
Variants rename digits and exchange rows and columns in every way the rules allow. Splits are
disjoint by solution: the hash of a solution with its digits renamed to 1, 2, ... in the first row
decides where it may occur, and a variant that falls into another split's share is drawn again.
Left out: puzzles from files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from saccade.config.errors import InputError
from saccade.config.recursion import SudokuSource
from saccade.data.generate.puzzles import SPLITS, belongs_to, puzzle_sample
from saccade.data.samples import Sample

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box."""
LETTERS = "#.123456789"
"""Padding, an empty cell, and the digits."""
TRIES = 400
VARIANT_TRIES = 64
SLACK = 2
STREAMS = {name: number for number, name in enumerate(SPLITS)}


@dataclass(frozen=True)
class Rules:
    """The units of one size: cells that must hold every digit once."""

    side: int
    units: tuple[tuple[int, ...], ...]
    peers: tuple[tuple[int, ...], ...]
    units_of: tuple[tuple[tuple[int, ...], ...], ...]


@cache
def rules(side: int) -> Rules:
    """Rows, columns and boxes of this side."""
    rows, columns = BOXES[side]
    units = [tuple(r * side + c for c in range(side)) for r in range(side)]
    units += [tuple(r * side + c for r in range(side)) for c in range(side)]
    for top in range(0, side, rows):
        for left in range(0, side, columns):
            units.append(
                tuple((top + r) * side + left + c for r in range(rows) for c in range(columns))
            )
    cells = range(side * side)
    of = tuple(tuple(unit for unit in units if cell in unit) for cell in cells)
    peers = tuple(
        tuple(sorted({other for unit in of[cell] for other in unit} - {cell})) for cell in cells
    )
    return Rules(side, tuple(units), peers, of)


class Solver:
    """Fills in what is forced, then guesses where fewest digits are left.

    Candidates are bit sets. `guesses` counts the cells at which it had to branch on the way to the
    first solution.
    """

    def __init__(self, side: int, *, rng: np.random.Generator | None = None) -> None:
        self.rules = rules(side)
        self.full = (1 << side) - 1
        self.rng = rng
        self.guesses = 0

    def solutions(self, grid: Sequence[int], *, limit: int) -> list[list[int]]:
        """Up to `limit` solutions of a grid in which 0 is empty."""
        options = [self.full] * len(self.rules.peers)
        self.guesses = 0
        for cell, digit in enumerate(grid):
            if digit and not self._put(options, cell, 1 << (digit - 1)):
                return []
        found: list[list[int]] = []
        self._search(options, found, limit)
        return found

    def _search(self, options: list[int], found: list[list[int]], limit: int) -> None:
        open_cells = [cell for cell, bits in enumerate(options) if bits & (bits - 1)]
        if not open_cells:
            found.append([bits.bit_length() for bits in options])
            return
        if not found:
            self.guesses += 1
        cell = min(open_cells, key=lambda one: options[one].bit_count())
        for bit in self._ordered(options[cell]):
            copy = options.copy()
            if self._put(copy, cell, bit):
                self._search(copy, found, limit)
            if len(found) >= limit:
                return

    def _ordered(self, bits: int) -> list[int]:
        each = [1 << digit for digit in range(self.rules.side) if bits >> digit & 1]
        if self.rng is not None:
            self.rng.shuffle(each)
        return each

    def _put(self, options: list[int], cell: int, bit: int) -> bool:
        """Place a digit and all that follows from it; False when that is impossible."""
        if not options[cell] & bit:
            return False
        waiting = [(cell, options[cell] & ~bit)]
        options[cell] = bit
        if not waiting[0][1]:
            return True
        while waiting:
            cell, removed = waiting.pop()
            bits = options[cell]
            if not bits:
                return False
            if not bits & (bits - 1):
                for peer in self.rules.peers[cell]:
                    if options[peer] & bits:
                        options[peer] &= ~bits
                        waiting.append((peer, bits))
            for unit in self.rules.units_of[cell]:
                if not self._place_in(options, unit, removed, waiting):
                    return False
        return True

    def _place_in(
        self, options: list[int], unit: tuple[int, ...], removed: int,
        waiting: list[tuple[int, int]],
    ) -> bool:  # fmt: skip
        """Digits that just lost a cell of this unit may have one place left, or none."""
        once = twice = 0
        for other in unit:
            twice |= once & options[other]
            once |= options[other]
        if once != self.full:
            return False
        single = removed & ~twice
        if single:
            for other in unit:
                bits = options[other]
                hit = bits & single
                if hit and bits != hit:
                    if hit & (hit - 1):
                        return False  # two digits with only this cell left
                    options[other] = hit
                    waiting.append((other, bits & ~hit))
        return True


@dataclass(frozen=True)
class Puzzle:
    """A puzzle with its only solution; 0 is empty."""

    grid: tuple[int, ...]
    solution: tuple[int, ...]
    guesses: int

    @property
    def clues(self) -> int:
        """Cells that are given."""
        return sum(1 for digit in self.grid if digit)


def is_valid(solution: Sequence[int], *, side: int) -> bool:
    """Whether every unit holds every digit once."""
    wanted = set(range(1, side + 1))
    return all({solution[cell] for cell in unit} == wanted for unit in rules(side).units)


def draw_solution(side: int, *, rng: np.random.Generator) -> list[int]:
    """A random full grid."""
    return Solver(side, rng=rng).solutions([0] * (side * side), limit=1)[0]


def dig(solution: Sequence[int], *, side: int, clues: int, rng: np.random.Generator) -> list[int]:
    """Empty cells in random order while one solution is left, down to `clues`."""
    grid, left = list(solution), len(solution)
    solver = Solver(side)
    for cell in rng.permutation(len(grid)).tolist():
        if left <= clues:
            break
        digit, grid[cell] = grid[cell], 0
        if len(solver.solutions(grid, limit=2)) == 1:
            left -= 1
        else:
            grid[cell] = digit
    return grid


def renamed(solution: Sequence[int] | np.ndarray, *, side: int) -> bytes:
    """The solution with the digits of its first row called 1, 2, ...: what splits go by."""
    names = np.zeros(side + 1, dtype=np.uint8)
    flat = np.asarray(solution)
    names[flat[:side]] = np.arange(1, side + 1)
    return names[flat].tobytes()


def draw_puzzle(source: SudokuSource, number: int) -> Puzzle:
    """Puzzle `number` of a stream; raises InputError when the wishes cannot be met."""
    side = source.side
    most = source.clues + SLACK if source.max_clues is None else source.max_clues
    rng = np.random.default_rng([source.seed, STREAMS[source.split], side, number])
    for _ in range(TRIES):
        solution = draw_solution(side, rng=rng)
        if not belongs_to(renamed(solution, side=side), split=source.split):
            continue
        grid = dig(solution, side=side, clues=source.clues, rng=rng)
        solver = Solver(side)
        solver.solutions(grid, limit=1)
        puzzle = Puzzle(tuple(grid), tuple(solution), solver.guesses)
        if puzzle.clues <= most and puzzle.guesses >= source.min_guesses:
            return puzzle
    raise InputError(
        f"no Sudoku of side {side} with at most {most} clues and at least {source.min_guesses}"
        f" guesses in {TRIES} tries\n  fix: raise clues or max_clues, or lower min_guesses"
    )


def vary(
    grid: np.ndarray, solution: np.ndarray, *, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rename digits, and exchange rows and columns in every way that keeps the rules."""
    box_rows, box_columns = BOXES[side]
    rows = _exchanged(side, group=box_rows, rng=rng)
    columns = _exchanged(side, group=box_columns, rng=rng)
    digits = np.concatenate(([0], rng.permutation(side) + 1))
    turned = box_rows == box_columns and rng.random() < 0.5

    def apply(flat: np.ndarray) -> np.ndarray:
        square = flat.reshape(side, side)
        square = square.T if turned else square
        return digits[square[rows][:, columns]].reshape(-1)

    return apply(grid), apply(solution)


def _exchanged(side: int, *, group: int, rng: np.random.Generator) -> np.ndarray:
    """An order of rows that keeps the rows of a box together."""
    order = np.arange(side).reshape(-1, group)
    order = rng.permuted(order, axis=1)
    return order[rng.permutation(len(order))].reshape(-1)


class SudokuPuzzles:
    """A stream of Sudoku as samples: all puzzles, then all of them in their next version."""

    def __init__(self, source: SudokuSource) -> None:
        self.source = source
        self._puzzle = lru_cache(maxsize=None)(lambda number: draw_puzzle(source, number))

    @property
    def length(self) -> int:
        """Cells of a grid."""
        return self.source.side**2

    @property
    def vocabulary(self) -> int:
        """Padding, empty, and the digits."""
        return self.source.side + 2

    @property
    def identities(self) -> int:
        """All Sudoku are one task."""
        return 1

    def __len__(self) -> int:
        return self.source.puzzles * self.source.variants

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        variant, number = divmod(position, self.source.puzzles)
        puzzle = self._puzzle(number)
        grid, solution = np.array(puzzle.grid), np.array(puzzle.solution)
        if variant:
            grid, solution = self._version(grid, solution, number=number, variant=variant)
        name = f"sudoku{self.source.side}-{self.source.split}-{number}"
        return puzzle_sample(
            f"{name}-{variant}" if variant else name,
            given=grid + 1, target=solution + 1, letters=LETTERS, columns=self.source.side,
            kind=f"guesses{min(puzzle.guesses, 3)}{'+' if puzzle.guesses >= 3 else ''}",
            facts={"clues": puzzle.clues, "guesses": puzzle.guesses},
        )  # fmt: skip

    def _version(
        self, grid: np.ndarray, solution: np.ndarray, *, number: int, variant: int
    ) -> tuple[np.ndarray, np.ndarray]:
        source = self.source
        rng = np.random.default_rng([source.seed, STREAMS[source.split], number, variant])
        for _ in range(VARIANT_TRIES):
            other = vary(grid, solution, side=source.side, rng=rng)
            if belongs_to(renamed(other[1], side=source.side), split=source.split):
                return other
        return grid, solution

    def groups(self) -> list[list[int]]:
        """Every sample for itself."""
        return [[position] for position in range(len(self))]

    def fingerprint(self) -> str:
        """Equal for equal settings."""
        text = self.source.model_dump_json()
        return "sudoku:" + hashlib.sha256(text.encode()).hexdigest()[:16]
