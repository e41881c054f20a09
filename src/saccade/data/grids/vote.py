"""Many predictions of one puzzle become a ranking: each variant votes for the grid it saw.

In go predictions of augmented variants, as tokens or as grids; each is undone, cropped and counted
under the original task and test input. Out come candidates ranked by votes, then by mean
confidence, and pass@k. A task's score is the mean over its test inputs; a test without any
prediction counts as wrong. Ballots of several processes add up. After the published evaluation of
TRM; where that leaves the order of exact ties to chance, here the grid's hash decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saccade.data.grids.arc import Task
from saccade.data.grids.augment import parse_name
from saccade.data.grids.canvas import PUBLISHED, Grid, Shape, crop, grid_hash

PASS_AT = (1, 2, 5, 10, 100, 1000)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A grid that was predicted, how often, and with what mean confidence."""

    grid: Grid
    votes: int
    confidence: float


@dataclass(eq=False)
class _Tally:
    grid: Grid
    votes: int = 0
    confidences: list[float] = field(default_factory=list)


class Ballot:
    """Votes per task and test input."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], dict[str, _Tally]] = {}

    def add(self, variant: str, *, shown: Grid, predicted: Grid, confidence: float) -> None:
        """Count one prediction: `shown` and `predicted` are the variant's own grids."""
        task, augmentation = parse_name(variant)
        key = task, grid_hash(augmentation.undo(shown))
        grid = augmentation.undo(predicted) if predicted.size else predicted
        tally = self._tallies.setdefault(key, {}).setdefault(grid_hash(grid), _Tally(grid))
        tally.votes += 1
        tally.confidences.append(confidence)

    def add_tokens(
        self,
        variant: str,
        *,
        shown: NDArray[np.integer],
        predicted: NDArray[np.integer],
        halt_logit: float,
        shape: Shape = PUBLISHED,
    ) -> None:
        """Count one prediction given as canvases [R*C] and the halting logit."""
        self.add(
            variant,
            shown=crop(shown, shape=shape),
            predicted=crop(predicted, shape=shape),
            confidence=_sigmoid(halt_logit),
        )

    def merge(self, other: Ballot) -> None:
        """Add another process's votes."""
        for key, grids in other._tallies.items():
            mine = self._tallies.setdefault(key, {})
            for name, tally in grids.items():
                into = mine.setdefault(name, _Tally(tally.grid))
                into.votes += tally.votes
                into.confidences += tally.confidences

    def ranked(self, task: str, shown: Grid) -> list[Candidate]:
        """Candidates for one test input, best first."""
        tallies = self._tallies.get((task, grid_hash(shown)), {})
        # fsum: the mean does not depend on the order in which processes brought their votes
        found = [
            (-one.votes, -math.fsum(one.confidences) / one.votes, name, one)
            for name, one in tallies.items()
        ]
        return [
            Candidate(one.grid, votes=-votes, confidence=-confidence)
            for votes, confidence, _, one in sorted(found, key=lambda row: row[:3])
        ]


def pass_at_k(
    ballot: Ballot, tasks: Iterable[Task], *, ks: Sequence[int] = PASS_AT
) -> dict[int, float]:
    """Share of test inputs whose solution is among the best k, averaged per task, then over tasks.

    Only tests with a known output count; a task without any is left out.
    """
    scores: dict[int, list[float]] = {k: [] for k in ks}
    for task in tasks:
        tests = [pair for pair in task.test if pair.output is not None]
        if not tests:
            continue
        places = [_place_of(ballot.ranked(task.name, p.input), p.output) for p in tests]
        for k in ks:
            scores[k].append(sum(place < k for place in places) / len(places))
    return {k: math.fsum(values) / len(values) if values else 0.0 for k, values in scores.items()}


def _place_of(candidates: Sequence[Candidate], solution: Grid | None) -> float:
    assert solution is not None
    for place, candidate in enumerate(candidates):
        if np.array_equal(candidate.grid, solution):
            return place
    return math.inf


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))
