"""Read puzzles made of input and output grids: ARC-AGI-1 and 2, ConceptARC, mini-ARC, 1D-ARC.

A path flows in, checked `Task`s flow out. Three layouts are told apart by what is there: a Kaggle
pair `NAME_challenges.json` + `NAME_solutions.json`, a folder of task files `{train, test}` (with
subfolders or not), or one such file. Solutions may be missing; such test outputs are None. Every
fault names file, task and pair. Left out: tokens (`canvas.py`) and variants (`augment.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade.config.errors import InputError
from saccade.data.grids.canvas import COLORS, Grid, grid_hash
from saccade.data.samples import DataError

MAX_EDGE = 128
"""ARC's grids have at most 30 cells a side, rows of 1D-ARC have more."""
CHALLENGES, SOLUTIONS = "_challenges.json", "_solutions.json"


@dataclass(frozen=True, eq=False)
class Pair:
    """One input grid and its output; the output of an unsolved test is None."""

    input: Grid
    output: Grid | None


@dataclass(frozen=True, eq=False)
class Task:
    """A puzzle: demonstrations that show the rule, and tests that ask for it."""

    name: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]

    def pairs(self) -> tuple[Pair, ...]:
        """Demonstrations, then tests."""
        return self.train + self.test


def read_tasks(path: Path) -> list[Task]:
    """Read all tasks of a file or folder, by name; raises `DataError` for a broken one."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder\n  fix: name a folder of ARC tasks")
    if path.name.endswith(CHALLENGES):
        return _read_challenges(path)
    return [_task(_load(path), name=path.stem, where=str(path))]


def tasks_in_common(one: Iterable[Task], other: Iterable[Task]) -> list[tuple[str, str]]:
    """Pairs of names of tasks that show the same grids, whatever they are called.

    ARC-AGI-2's training tasks include evaluation tasks of ARC-AGI-1: training on one and
    measuring on the other must be refused by content, since names differ between releases.
    """
    known = {task_hash(task): task.name for task in one}
    return [(known[key], task.name) for task in other if (key := task_hash(task)) in known]


def task_hash(task: Task) -> str:
    """Hash of all demonstrations, in any order (tests may come without their outputs)."""
    return "|".join(sorted(pair_hash(pair) for pair in task.train))


def pair_hash(pair: Pair) -> str:
    """Hash of an input and its output."""
    output = "?" if pair.output is None else grid_hash(pair.output)
    return f"{grid_hash(pair.input)}:{output}"


def largest_shape(tasks: Sequence[Task]) -> tuple[int, int]:
    """Most rows and most columns of any grid."""
    grids = [g for task in tasks for p in task.pairs() for g in (p.input, p.output)]
    shapes = [grid.shape for grid in grids if grid is not None]
    return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def _read_folder(folder: Path) -> list[Task]:
    combined = sorted(folder.glob(f"*{CHALLENGES}"))
    tasks: dict[str, Task] = {}
    if combined:
        for file in combined:
            for task in _read_challenges(file):
                _add(tasks, task, where=str(file))
        return list(tasks.values())
    for file in sorted(folder.rglob("*.json")):
        _add(tasks, _task(_load(file), name=file.stem, where=str(file)), where=str(file))
    if not tasks:
        raise InputError(
            f"{folder}: no tasks; looked for *{CHALLENGES} and for task files *.json"
            "\n  fix: name the folder that holds the tasks"
        )
    return list(tasks.values())


def _add(tasks: dict[str, Task], task: Task, *, where: str) -> None:
    if task.name in tasks:
        raise DataError(
            f"a second task is called {task.name}",
            where=where,
            fix="read the folders one at a time (ARC-AGI-1 and 2 share tasks and must not mix)",
        )
    tasks[task.name] = task


def _read_challenges(path: Path) -> list[Task]:
    challenges = _load(path)
    beside = path.with_name(path.name.removesuffix(CHALLENGES) + SOLUTIONS)
    solutions = _load(beside) if beside.is_file() else {}
    if not isinstance(challenges, Mapping):
        raise DataError("expected {task: {train, test}}", where=str(path), fix="see the ARC layout")
    return [
        _task(value, name=name, where=str(path), solutions=solutions.get(name))
        for name, value in challenges.items()
    ]


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"this is not JSON ({error})", where=str(path), fix="download the file again"
        ) from error


def _task(value: Any, *, name: str, where: str, solutions: Any = None) -> Task:
    label = f"{where}, task {name}"
    parts = {}
    for part in ("train", "test"):
        rows = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(rows, list) or not rows:
            problem = f"there is no list {part!r}" if rows != [] else f"{part!r} is empty"
            raise DataError(problem, where=label, fix="see the ARC layout")
        parts[part] = rows
    if solutions is not None and len(solutions) != len(parts["test"]):
        raise DataError(
            f"{len(parts['test'])} tests but {len(solutions)} solutions",
            where=label,
            fix="take both files from one release",
        )
    train = tuple(
        Pair(
            input=_grid(row, "input", where=f"{label}, train {i}"),
            output=_grid(row, "output", where=f"{label}, train {i}"),
        )
        for i, row in enumerate(parts["train"])
    )
    test = []
    for i, row in enumerate(parts["test"]):
        at = f"{label}, test {i}"
        row = row if solutions is None else {**row, "output": solutions[i]}
        known = isinstance(row, Mapping) and row.get("output") is not None
        output = _grid(row, "output", where=at) if known else None
        test.append(Pair(input=_grid(row, "input", where=at), output=output))
    return Task(name=name, train=train, test=tuple(test))


def _grid(row: Any, key: str, *, where: str) -> Grid:
    value = row.get(key) if isinstance(row, Mapping) else None
    fix = f"a grid is a list of equally long rows of 0..{COLORS - 1}, at most {MAX_EDGE} a side"
    try:
        cells = np.array(value, dtype=np.int64)
    except (TypeError, ValueError):
        cells = np.zeros(0, dtype=np.int64)
    if cells.ndim != 2 or not cells.size:
        raise DataError(f"{key} is not a grid", where=where, fix=fix)
    if max(cells.shape) > MAX_EDGE:
        raise DataError(f"{key} is {len(cells)}x{len(cells[0])} cells", where=where, fix=fix)
    if cells.min() < 0 or cells.max() >= COLORS:
        worst = int(cells.max() if cells.max() >= COLORS else cells.min())
        raise DataError(f"{key} holds the value {worst}", where=where, fix=fix)
    return cells.astype(np.uint8)
