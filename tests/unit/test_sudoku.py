"""Generated Sudoku: one solution each, graded, varied within the rules, splits disjoint."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from saccade.config.errors import InputError
from saccade.config.schema import SudokuSource
from saccade.data.generate.puzzles import INPUT, SPLITS, TARGET, share_of
from saccade.data.generate.sudoku import (
    Solver,
    SudokuPuzzles,
    draw_puzzle,
    draw_solution,
    is_valid,
    renamed,
    rules,
    vary,
)
from saccade.data.sources import open_source


def source(**values: Any) -> SudokuSource:
    return SudokuSource(**{"type": "sudoku", "side": 4, "clues": 5, "puzzles": 12, **values})


def brute_force(grid: list[int], *, side: int) -> list[list[int]]:
    """All solutions, by trying every digit in every cell."""
    if 0 not in grid:
        return [grid]
    cell, found = grid.index(0), []
    for digit in range(1, side + 1):
        if all(grid[peer] != digit for peer in rules(side).peers[cell]):
            found += brute_force([*grid[:cell], digit, *grid[cell + 1 :]], side=side)
    return found


def test_the_solver_finds_what_trying_everything_finds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        grid = draw_solution(4, rng=rng)
        for cell in rng.permutation(16)[: int(rng.integers(9, 13))]:
            grid[cell] = 0
        found = Solver(4).solutions(grid, limit=10_000)
        assert sorted(found) == sorted(brute_force(grid, side=4))


def test_a_contradiction_has_no_solution() -> None:
    assert Solver(4).solutions([1, 1] + [0] * 14, limit=2) == []
    assert Solver(4).solutions([1, 2, 3, 0, 0, 0, 0, 4] + [0] * 8, limit=2) == []


@pytest.mark.parametrize(("side", "clues"), [(4, 5), (6, 10), (9, 30)])
def test_puzzles_have_exactly_one_solution_and_the_clues_asked_for(side: int, clues: int) -> None:
    for number in range(4):
        puzzle = draw_puzzle(source(side=side, clues=clues), number)
        assert is_valid(puzzle.solution, side=side)
        assert Solver(side).solutions(puzzle.grid, limit=3) == [list(puzzle.solution)]
        assert clues <= puzzle.clues <= clues + 2
        assert all(g in (0, s) for g, s in zip(puzzle.grid, puzzle.solution, strict=True))


def test_a_clue_less_would_allow_a_second_solution_where_digging_stopped_early() -> None:
    puzzle = draw_puzzle(source(side=4, clues=1, max_clues=16), 0)
    for cell, digit in enumerate(puzzle.grid):
        if digit:
            fewer = [*puzzle.grid[:cell], 0, *puzzle.grid[cell + 1 :]]
            assert len(Solver(4).solutions(fewer, limit=2)) == 2


def test_puzzles_that_are_graded_hard_need_guesses() -> None:
    wanted = source(side=6, clues=8, min_guesses=1)
    puzzle = draw_puzzle(wanted, 0)
    assert puzzle.guesses >= 1
    solver = Solver(6)
    solver.solutions(puzzle.grid, limit=1)
    assert solver.guesses == puzzle.guesses


def test_a_wish_that_cannot_be_met_names_the_fix() -> None:
    with pytest.raises(InputError, match=r"raise clues or max_clues") as caught:
        draw_puzzle(source(side=4, clues=2, max_clues=3), 0)
    assert "400 tries" in str(caught.value)


@pytest.mark.parametrize("side", [4, 6, 9])
def test_variants_obey_the_rules_and_keep_the_clues(side: int) -> None:
    rng = np.random.default_rng(1)
    solution = np.array(draw_solution(side, rng=rng))
    grid = np.where(rng.random(side * side) < 0.4, solution, 0)
    seen = set()
    for _ in range(20):
        other, solved = vary(grid, solution, side=side, rng=rng)
        assert is_valid(solved.tolist(), side=side)
        assert bool((other[other > 0] == solved[other > 0]).all())
        assert (other > 0).sum() == (grid > 0).sum()
        seen.add(solved.tobytes())
    assert len(seen) >= 15  # there are only 288 grids of side 4


def test_no_solution_of_one_split_occurs_in_another() -> None:
    shares: dict[str, set[bytes]] = {}
    for split in SPLITS:
        puzzles = SudokuPuzzles(source(side=6, clues=12, puzzles=6, variants=8, split=split))
        shares[split] = {renamed(puzzles[i].facts[TARGET] - 1, side=6) for i in range(len(puzzles))}
        assert all(share_of(one) in SPLITS[split] for one in shares[split])
    for one, other in pairwise(shares.values()):
        assert not one & other


def test_a_sample_is_a_function_of_its_position() -> None:
    first, again = SudokuPuzzles(source(variants=3)), SudokuPuzzles(source(variants=3))
    for position in (0, 5, 12, 35):
        one, other = first[position], again[position]
        assert one.id == other.id
        assert one.question == other.question
        assert bool((one.facts[INPUT] == other.facts[INPUT]).all())
    assert first[0].id == "sudoku4-train-0"
    assert first[24].id == "sudoku4-train-0-2"
    assert first[0].question != first[24].question
    assert len({first[i].id for i in range(len(first))}) == len(first) == 36


def test_symbols_are_padding_empty_and_the_digits() -> None:
    puzzles = open_source(source())
    sample = puzzles[0]
    assert isinstance(puzzles, SudokuPuzzles)
    assert (puzzles.length, puzzles.vocabulary, puzzles.identities) == (16, 6, 1)
    assert set(sample.facts[INPUT].tolist()) <= set(range(1, 6))
    assert set(sample.facts[TARGET].tolist()) == set(range(2, 6))
    assert sample.question.count("\n") == 3
    given = sample.question.replace("\n", "")
    solved = sample.answer.replace("\n", "")
    assert all(g in (".", s) for g, s in zip(given, solved, strict=True))


def test_other_settings_have_another_fingerprint() -> None:
    assert SudokuPuzzles(source()).fingerprint() == SudokuPuzzles(source()).fingerprint()
    assert SudokuPuzzles(source()).fingerprint() != SudokuPuzzles(source(seed=1)).fingerprint()
