"""Mazes drawn on the fly: find the path from start to goal.

A `MazeSource` flows in; samples flow out, each a pure function of (seed, split, position). A maze
is a random tree of corridors between walls, so exactly one path joins two of its cells. The target
is the maze with that path marked; it is graded by its path's length. Variants are turned and
mirrored. Splits are disjoint: the hash of the least of a maze's eight versions decides where it may
occur. Left out: mazes with loops, where a shortest path would have to be chosen.
"""

from __future__ import annotations

import hashlib
from collections import deque
from functools import lru_cache

import numpy as np

from saccade.config.errors import InputError
from saccade.config.recursion import MazeSource
from saccade.data.generate.puzzles import SPLITS, belongs_to, puzzle_sample
from saccade.data.samples import Sample

LETTERS = "?# SGo"
"""Padding, wall, corridor, start, goal, path."""
WALL, FREE, START, GOAL, PATH = range(1, 6)
TRIES = 400
STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))
STREAMS = {name: number for number, name in enumerate(SPLITS)}


def draw_walls(side: int, *, rng: np.random.Generator) -> np.ndarray:
    """A random tree of corridors [side, side], carved by a walk that turns back at dead ends."""
    grid = np.full((side, side), WALL, dtype=np.int64)
    rooms = side // 2
    first = tuple(int(one) for one in rng.integers(0, rooms, size=2))
    grid[2 * first[0] + 1, 2 * first[1] + 1] = FREE
    trail = [first]
    while trail:
        row, column = trail[-1]
        ways = []
        for down, right in STEPS:
            r, c = row + down, column + right
            if 0 <= r < rooms and 0 <= c < rooms and grid[2 * r + 1, 2 * c + 1] == WALL:
                ways.append((r, c))
        if not ways:
            trail.pop()
            continue
        r, c = ways[int(rng.integers(len(ways)))]
        grid[row + r + 1, column + c + 1] = FREE
        grid[2 * r + 1, 2 * c + 1] = FREE
        trail.append((r, c))
    return grid


def find_path(
    grid: np.ndarray, start: tuple[int, int], goal: tuple[int, int]
) -> list[tuple[int, int]]:
    """The cells of the shortest path, both ends included; empty when there is none."""
    came: dict[tuple[int, int], tuple[int, int] | None] = {start: None}
    waiting = deque([start])
    while waiting and goal not in came:
        row, column = waiting.popleft()
        for down, right in STEPS:
            step = (row + down, column + right)
            if step not in came and grid[step] != WALL:
                came[step] = (row, column)
                waiting.append(step)
    if goal not in came:
        return []
    path, here = [], goal
    while here is not None:
        path.append(here)
        here = came[here]
    return path[::-1]


def turned(grid: np.ndarray, number: int) -> np.ndarray:
    """One of the eight turns and mirror images; 0 is the grid itself."""
    square = np.rot90(grid, number % 4)
    return square.T if number >= 4 else square


def least_version(grid: np.ndarray) -> bytes:
    """The same bytes for all eight versions of a grid."""
    return min(np.ascontiguousarray(turned(grid, n)).astype(np.uint8).tobytes() for n in range(8))


def draw_maze(source: MazeSource, number: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Maze `number` of a stream, its solution, and the steps of its path."""
    rng = np.random.default_rng([source.seed, STREAMS[source.split], source.side, number])
    for _ in range(TRIES):
        grid = draw_walls(source.side, rng=rng)
        rooms = rng.choice((source.side // 2) ** 2, size=2, replace=False).tolist()
        ends = [(2 * (one // (source.side // 2)) + 1, 2 * (one % (source.side // 2)) + 1)
                for one in rooms]  # fmt: skip
        path = find_path(grid, ends[0], ends[1])
        grid[ends[0]], grid[ends[1]] = START, GOAL
        if len(path) - 1 < source.min_path:
            continue
        if not belongs_to(least_version(grid), split=source.split):
            continue
        solution = grid.copy()
        for cell in path[1:-1]:
            solution[cell] = PATH
        return grid, solution, len(path) - 1
    raise InputError(
        f"no maze of side {source.side} with a path of {source.min_path} steps in {TRIES} tries"
        "\n  fix: lower min_path or raise side"
    )


class Mazes:
    """A stream of mazes as samples: all mazes, then all of them turned."""

    def __init__(self, source: MazeSource) -> None:
        self.source = source
        self._maze = lru_cache(maxsize=None)(lambda number: draw_maze(source, number))

    @property
    def length(self) -> int:
        """Cells of a grid."""
        return self.source.side**2

    @property
    def vocabulary(self) -> int:
        """All letters."""
        return len(LETTERS)

    @property
    def identities(self) -> int:
        """All mazes are one task."""
        return 1

    def __len__(self) -> int:
        return self.source.mazes * self.source.variants

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        variant, number = divmod(position, self.source.mazes)
        grid, solution, steps = self._maze(number)
        name = f"maze{self.source.side}-{self.source.split}-{number}"
        low = steps // 10 * 10
        return puzzle_sample(
            f"{name}-{variant}" if variant else name,
            given=turned(grid, variant).reshape(-1), target=turned(solution, variant).reshape(-1),
            letters=LETTERS, columns=self.source.side, kind=f"path{low:03d}-{low + 9:03d}",
            facts={"path": steps},
        )  # fmt: skip

    def groups(self) -> list[list[int]]:
        """Every sample for itself."""
        return [[position] for position in range(len(self))]

    def fingerprint(self) -> str:
        """Equal for equal settings."""
        text = self.source.model_dump_json()
        return "maze:" + hashlib.sha256(text.encode()).hexdigest()[:16]
