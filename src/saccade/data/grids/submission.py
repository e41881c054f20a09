"""The file that ARC's judges take: two attempts per test input, and its score where known.

A ballot and the tasks flow in, `{task: [{attempt_1, attempt_2}, ...]}` flows out, one entry per
test input in the task's order, as Kaggle's ARC Prize wants it. Two attempts are what TRM reports
and ARC-AGI-2 allows (ARC-AGI-1's own rules allow three). Also the two baselines that need no
model: copying the input, and painting everything in the commonest colour.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from saccade.data.grids.arc import Pair, Task
from saccade.data.grids.canvas import Grid
from saccade.data.grids.vote import Ballot

ATTEMPTS = 2
PLACEHOLDER = [[0]]
"""Stands for a test input without any prediction, since the file must have every entry."""

Submission = dict[str, list[dict[str, list[list[int]]]]]


def make_submission(
    ballot: Ballot, tasks: Iterable[Task], *, attempts: int = ATTEMPTS
) -> Submission:
    """Take the best candidates of every test input; fewer than asked for are repeated."""
    made: Submission = {}
    for task in tasks:
        entries = []
        for pair in task.test:
            best = [c.grid.tolist() for c in ballot.ranked(task.name, pair.input) if c.grid.size]
            best = (best or [PLACEHOLDER])[:attempts]
            best += [best[0]] * (attempts - len(best))
            entries.append({f"attempt_{i + 1}": grid for i, grid in enumerate(best)})
        made[task.name] = entries
    return made


def write_submission(path: Path, submission: Submission) -> None:
    """Write the file so that it exists whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(submission), encoding="utf-8")
    aside.replace(path)


def score_submission(submission: Submission, tasks: Iterable[Task]) -> float:
    """Share of test inputs with a right attempt, averaged per task, then over tasks."""
    scores = []
    for task in tasks:
        tests = list(zip(task.test, submission[task.name], strict=True))
        known = [(pair, entry) for pair, entry in tests if pair.output is not None]
        if known:
            right = [_is_right(pair, entry) for pair, entry in known]
            scores.append(sum(right) / len(right))
    return sum(scores) / len(scores) if scores else 0.0


def _is_right(pair: Pair, entry: dict[str, list[list[int]]]) -> bool:
    assert pair.output is not None
    return any(grid == pair.output.tolist() for grid in entry.values())


def copy_input(pair: Pair) -> Grid:
    """Baseline: the output is the input."""
    return pair.input


def paint_majority(pair: Pair) -> Grid:
    """Baseline: every cell has the input's commonest colour."""
    return np.full_like(pair.input, np.bincount(pair.input.reshape(-1)).argmax())


def baseline_score(tasks: Iterable[Task], guess: Callable[[Pair], Grid]) -> float:
    """Score of a guess that looks at one test input alone, as a one-attempt submission."""
    tasks = list(tasks)
    made: Submission = {
        task.name: [{"attempt_1": guess(pair).tolist()} for pair in task.test] for task in tasks
    }
    return score_submission(made, tasks)
