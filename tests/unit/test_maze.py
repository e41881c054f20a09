"""Generated mazes: one path, marked right, turned with its maze, splits disjoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from saccade.config.errors import InputError
from saccade.config.schema import MazeSource
from saccade.data.generate.maze import (
    FREE,
    GOAL,
    PATH,
    START,
    WALL,
    Mazes,
    draw_walls,
    find_path,
    least_version,
    turned,
)
from saccade.data.generate.puzzles import INPUT, SPLITS, TARGET, share_of
from saccade.data.sources import open_source


def source(**values: Any) -> MazeSource:
    return MazeSource(**{"type": "maze", "side": 9, "mazes": 6, **values})


def grids(mazes: Mazes, position: int) -> tuple[np.ndarray, np.ndarray]:
    sample, side = mazes[position], mazes.source.side
    return sample.facts[INPUT].reshape(side, side), sample.facts[TARGET].reshape(side, side)


def test_corridors_are_a_tree_that_reaches_every_room() -> None:
    grid = draw_walls(11, rng=np.random.default_rng(0))
    free = grid != WALL
    assert bool(free[1::2, 1::2].all())
    passages = int(free.sum()) - 25
    assert passages == 25 - 1  # rooms - 1 joins, all reached: a tree, so paths are unique
    for room in ((1, 1), (9, 9), (1, 9), (5, 3)):
        assert find_path(grid, (1, 1), room)
    assert not bool(free[0].any() or free[-1].any() or free[:, 0].any() or free[:, -1].any())


def test_the_marked_path_joins_start_and_goal() -> None:
    mazes = Mazes(source(variants=8, min_path=12))
    for position in range(len(mazes)):
        given, target = grids(mazes, position)
        (start,), (goal,) = np.argwhere(given == START), np.argwhere(given == GOAL)
        path = find_path(given, tuple(start.tolist()), tuple(goal.tolist()))
        marked = {tuple(cell) for cell in np.argwhere(target == PATH).tolist()}
        assert set(path[1:-1]) == marked
        assert len(path) - 1 == mazes[position].facts["path"] >= 12
        back = np.where(target == PATH, FREE, target)
        assert bool((back == given).all())


def test_the_eight_versions_differ_and_have_one_name() -> None:
    mazes = Mazes(source(mazes=1, variants=8))
    versions = [grids(mazes, position)[0] for position in range(8)]
    assert len({one.tobytes() for one in versions}) == 8
    assert len({least_version(one) for one in versions}) == 1
    assert bool((turned(versions[0], 0) == versions[0]).all())


def test_no_maze_of_one_split_occurs_in_another() -> None:
    for split, shares in SPLITS.items():
        mazes = Mazes(source(split=split))
        assert all(share_of(least_version(grids(mazes, i)[0])) in shares for i in range(6))


def test_an_even_side_and_a_path_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="must be odd"):
        source(side=8)
    with pytest.raises(InputError, match="lower min_path or raise side"):
        Mazes(source(side=5, min_path=50))[0]


def test_text_and_sizes() -> None:
    mazes = open_source(source())
    assert isinstance(mazes, Mazes)
    assert (mazes.length, mazes.vocabulary, mazes.identities) == (81, 6, 1)
    sample = mazes[0]
    assert set(sample.question) <= set("# SG\n")
    assert sample.answer.count("o") == sample.facts["path"] - 1
    assert sample.kind.startswith("path0")
