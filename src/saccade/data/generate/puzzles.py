"""What every source of grid puzzles shares: symbols, the samples they become, and the splits.

A puzzle is a row of input symbols and a row of target symbols of equal length, both small whole
numbers. It leaves as a `Sample` whose text people can read and whose facts hold the arrays under
`INPUT`, `TARGET` and `PUZZLE` (which row of the puzzle embedding it uses). Symbol 0 is padding
everywhere; a target of `IGNORED` is not supervised. Sources say how long their rows are, how many
symbols there are and how many puzzles, so that a model can be built for them. Left out: rules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from saccade.data.samples import Sample
from saccade.data.sources import SampleSource

INPUT, TARGET, PUZZLE = "input", "target", "puzzle"
"""Facts of a sample that hold its arrays and its puzzle's number."""
CAPSULES = "capsules"
"""Fact of a sample that holds vectors of a picture, where its source has any."""
PAD = 0
IGNORED = -100

SPLITS = {"train": range(6), "validation": range(6, 7), "test": range(7, 8)}
"""Of eight equal shares of all solutions, those that belong to a split."""


class PuzzleSource(SampleSource, Protocol):
    """A source of samples whose facts hold grids."""

    @property
    def length(self) -> int:
        """Symbols of a sample."""
        ...

    @property
    def vocabulary(self) -> int:
        """Different symbols, padding included."""
        ...

    @property
    def identities(self) -> int:
        """Different puzzles, for the puzzle embedding."""
        ...


def puzzle_sample(
    identity: str,
    *,
    given: np.ndarray,
    target: np.ndarray,
    letters: str,
    columns: int,
    kind: str,
    puzzle: int = 0,
    facts: dict[str, Any] | None = None,
) -> Sample:
    """A sample of flat symbol rows; `letters` are the symbols as text, padding first."""
    arrays = {INPUT: given.astype(np.int64), TARGET: target.astype(np.int64), PUZZLE: puzzle}
    return Sample(
        id=identity,
        question=as_text(given, letters=letters, columns=columns),
        answers=(as_text(target, letters=letters, columns=columns),),
        kind=kind,
        facts={**arrays, "columns": columns, "letters": letters, **(facts or {})},
    )


def as_text(symbols: Sequence[int] | np.ndarray, *, letters: str, columns: int) -> str:
    """Symbols as lines of letters."""
    text = "".join(letters[int(one)] if one >= 0 else "?" for one in symbols)
    return "\n".join(text[start : start + columns] for start in range(0, len(text), columns))


def share_of(content: bytes) -> int:
    """Which of the eight shares some content belongs to."""
    return hashlib.blake2b(content, digest_size=2).digest()[0] % 8


def belongs_to(content: bytes, *, split: str) -> bool:
    """Whether this content may occur in the split."""
    return share_of(content) in SPLITS[split]
