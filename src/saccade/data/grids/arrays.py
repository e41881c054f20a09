"""Puzzles as the flat arrays that HRM and TRM train on, and their `.npy` folders.

In go tasks, columns (`columns.py`) or a folder of theirs, out comes a `PuzzleArrays`: inputs and
labels [N, L], and two levels of boundaries. A *puzzle* is one variant of a task and owns examples
`puzzle_indices[p] : puzzle_indices[p + 1]`; a *group* is a task with all its variants and owns
puzzles `group_indices[g] : group_indices[g + 1]`. A batch draws groups, one random puzzle of each,
then its examples. Token 0 is PAD, never asked for in the labels; identifier 0 is no puzzle at all.

Demonstrations of evaluation tasks are trained on, their tests are not: that is how TRM is judged,
and to be said beside every number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saccade.data.grids.arc import Task
from saccade.data.grids.augment import DIHEDRAL, FLIPS, variants
from saccade.data.grids.canvas import PUBLISHED, VOCABULARY, Grid, Shape, draw_offset, place
from saccade.data.samples import DataError

FIELDS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
SET = "all"
BLANK = "<blank>"
UNKNOWN = np.zeros((1, 1), dtype=np.uint8)
"""Stands for the output of a test without a solution, as in the published builder."""


@dataclass(frozen=True, eq=False)
class PuzzleArrays:
    """Examples [N, L] of P puzzles in G groups; `identifiers[i]` names puzzle identifier i."""

    inputs: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    puzzle_identifiers: NDArray[np.int32]
    puzzle_indices: NDArray[np.int32]
    group_indices: NDArray[np.int32]
    vocabulary: int
    identifiers: tuple[str, ...] = (BLANK,)

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ValueError(problem)

    def _problem(self) -> str:
        if self.inputs.shape != self.labels.shape or self.inputs.ndim != 2:
            return f"inputs {self.inputs.shape} and labels {self.labels.shape} differ"
        if len(self.puzzle_identifiers) != len(self.puzzle_indices) - 1:
            return "there is not one identifier per puzzle"
        for name, bounds, end in (
            ("puzzle_indices", self.puzzle_indices, len(self.inputs)),
            ("group_indices", self.group_indices, len(self.puzzle_identifiers)),
        ):
            if bounds[0] != 0 or bounds[-1] != end or (np.diff(bounds) < 1).any():
                return f"{name} does not rise from 0 to {end}"
        if self.inputs.size and max(self.inputs.max(), self.labels.max()) >= self.vocabulary:
            return f"a token is not below the vocabulary's size {self.vocabulary}"
        return ""

    @property
    def length(self) -> int:
        """Tokens of one example."""
        return self.inputs.shape[1]

    @property
    def groups(self) -> int:
        """Number of groups (tasks)."""
        return len(self.group_indices) - 1

    def puzzle_of(self, example: int) -> int:
        """The puzzle an example belongs to."""
        return int(np.searchsorted(self.puzzle_indices, example, side="right")) - 1


@dataclass(frozen=True, eq=False)
class Split:
    """What is trained on, what is asked, and the tasks behind the questions."""

    train: PuzzleArrays
    test: PuzzleArrays
    test_tasks: tuple[Task, ...]


def build_arc(
    train: Sequence[Task],
    evaluation: Sequence[Task],
    *,
    augmentations: int,
    seed: int,
    shape: Shape = PUBLISHED,
) -> Split:
    """Make arrays from tasks, each with up to `augmentations` variants.

    Trained on: all pairs of `train` and the demonstrations of `evaluation`. Asked: the tests of
    `evaluation`, in every variant. A training grid sits at a random place of the canvas, save one
    demonstration per puzzle at the corner; asked grids always sit at the corner. On a canvas that
    is not square variants are mirrored but not turned.
    """
    identifiers = [BLANK]
    turns = range(DIHEDRAL) if shape[0] == shape[1] else FLIPS
    asked, trained = _Rows(shape), _Rows(shape)
    for index, (task, is_asked) in enumerate(
        [(task, False) for task in train] + [(task, True) for task in evaluation]
    ):
        rng = np.random.default_rng([seed, index])
        for variant in variants(task, count=augmentations, rng=rng, turns=turns):
            number = len(identifiers)
            identifiers.append(variant.name)
            pairs = variant.train if is_asked else variant.pairs()
            known = [(p.input, p.output) for p in pairs if p.output is not None]
            trained.puzzle(known, number=number, rng=rng)
            if is_asked:
                tests = [(p.input, UNKNOWN if p.output is None else p.output) for p in variant.test]
                asked.puzzle(tests, number=number, rng=None)
        trained.end_group()
        if is_asked:
            asked.end_group()
    names = tuple(identifiers)
    return Split(trained.arrays(names), asked.arrays(names), tuple(evaluation))


class _Rows:
    """Examples collected puzzle by puzzle."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.examples: list[tuple[Grid, Grid]] = []
        self.numbers: list[int] = []
        self.puzzle_ends = [0]
        self.group_ends = [0]

    def puzzle(
        self, pairs: Sequence[tuple[Grid, Grid]], *, number: int, rng: np.random.Generator | None
    ) -> None:
        at_corner = None if rng is None else int(rng.integers(len(pairs)))
        for i, pair in enumerate(pairs):
            row, column = 0, 0
            if rng is not None and i != at_corner:
                row, column = draw_offset(pair, rng=rng, shape=self.shape)
            self.examples.append(
                tuple(place(g, shape=self.shape, row=row, column=column) for g in pair)  # type: ignore[arg-type]
            )
        self.numbers.append(number)
        self.puzzle_ends.append(len(self.examples))

    def end_group(self) -> None:
        self.group_ends.append(len(self.numbers))

    def arrays(self, identifiers: tuple[str, ...]) -> PuzzleArrays:
        empty = np.zeros((0, self.shape[0] * self.shape[1]), dtype=np.uint8)
        inputs, labels = (
            np.stack([pair[i] for pair in self.examples]) if self.examples else empty
            for i in (0, 1)
        )
        return PuzzleArrays(
            inputs=inputs,
            labels=labels,
            puzzle_identifiers=np.array(self.numbers, np.int32),
            puzzle_indices=np.array(self.puzzle_ends, np.int32),
            group_indices=np.array(self.group_ends, np.int32),
            vocabulary=VOCABULARY,
            identifiers=identifiers,
        )


def read_arrays(folder: Path, split: str, *, limit: int | None = None) -> PuzzleArrays:
    """Read what HRM's or TRM's builders wrote; large arrays stay on disk.

    Where a file `identifiers.json` names fewer puzzles than there are, or is missing, the others
    are called by their numbers. `limit` keeps the first examples.
    """
    try:
        about = json.loads((folder / split / "dataset.json").read_text(encoding="utf-8"))
        file = folder / "identifiers.json"
        names = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else [BLANK]
        arrays = {
            name: np.load(folder / split / f"{SET}__{name}.npy", mmap_mode="r") for name in FIELDS
        }
        most = int(arrays["puzzle_identifiers"].max())
        count = max(int(about["num_puzzle_identifiers"]), most + 1)
        found = PuzzleArrays(
            inputs=arrays["inputs"],
            labels=arrays["labels"],
            puzzle_identifiers=np.asarray(arrays["puzzle_identifiers"]),
            puzzle_indices=np.asarray(arrays["puzzle_indices"]),
            group_indices=np.asarray(arrays["group_indices"]),
            vocabulary=int(about["vocab_size"]),
            identifiers=(*names[:count], *(f"puzzle-{n}" for n in range(len(names), count))),
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"no puzzle arrays can be read ({error})",
            where=str(folder / split),
            fix=f"the folder holds dataset.json and {SET}__NAME.npy for {', '.join(FIELDS)}",
        ) from error
    return found if limit is None else _first(found, limit)


def _first(arrays: PuzzleArrays, limit: int) -> PuzzleArrays:
    """The first examples, with the boundaries that are left."""
    examples = min(limit, len(arrays.inputs))
    puzzles = arrays.puzzle_of(examples - 1) + 1
    groups = int(np.searchsorted(arrays.group_indices, puzzles))
    return replace(
        arrays,
        inputs=arrays.inputs[:examples],
        labels=arrays.labels[:examples],
        puzzle_identifiers=arrays.puzzle_identifiers[:puzzles],
        puzzle_indices=np.append(arrays.puzzle_indices[:puzzles], examples),
        group_indices=np.append(arrays.group_indices[:groups], puzzles),
    )
