"""Shards as a source of puzzles: capsules of a picture in front, symbols asked for.

An `EncodedSource` flows in; samples flow out whose facts hold capsules [C, E], input symbols and
target symbols, as the recipe `recursion` reads them (`generate/puzzles.py`). The order is that in
which shards are built, so a training may follow a builder that is still at work. Every tenth
position is held out for the split `test`. Where the symbols of the question are read, too, they
stand in the cells; else the picture is all there is. Left out: children and single features.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np

from saccade.config.shards import EncodedSource
from saccade.data.generate.puzzles import CAPSULES, IGNORED, PAD, puzzle_sample
from saccade.data.samples import Sample
from saccade.data.shards.manifest import Manifest
from saccade.data.shards.reader import ShardOrder, ShardReader

HELD_OUT = 10
"""One position of so many is held out."""
LETTERS = " |0123456789" + "".join(chr(n) if 32 <= n < 127 else "~" for n in range(256))
"""Nothing, end, the colours of grids, and bytes."""


class EncodedPuzzles:
    """Samples of a shard folder."""

    ordered = True

    def __init__(self, source: EncodedSource, *, patience_s: float = 30.0) -> None:
        self.source = source
        self.reader = ShardReader(source.path, patience_s=patience_s)
        self.rows = _rows(self.reader.manifest, split=source.split, seed=source.seed)
        first = self.reader[int(self.rows[0])]
        asked, given = len(first["targets"]), len(first["inputs"])
        self.length = max(asked, given) if source.symbols else asked
        self.capsules: tuple[int, int] = tuple(first["sketches"].shape)

    @property
    def vocabulary(self) -> int:
        """All symbols of shards."""
        return len(LETTERS)

    @property
    def identities(self) -> int:
        """Pictures have no puzzle embedding of their own."""
        return 1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        found = self.reader[int(self.rows[position])]
        target = _padded(found["targets"].numpy(), length=self.length)
        given = np.full(self.length, PAD)
        if self.source.symbols:
            given = _padded(found["inputs"].numpy(), length=self.length)
        return puzzle_sample(
            found["id"], given=given, target=np.where(target == PAD, IGNORED, target),
            letters=LETTERS, columns=self.length, kind=self.reader.kind(found),
            facts={CAPSULES: found["sketches"].float().numpy()},
        )  # fmt: skip

    def groups(self) -> list[list[int]]:
        """Every sample for itself."""
        return [[position] for position in range(len(self))]

    def fingerprint(self) -> str:
        """Equal for equal plans of the build, whether it is finished or not."""
        manifest = self.reader.manifest
        about = {"plan": asdict(manifest)["plan"], "samples": manifest.samples}
        text = json.dumps([about, self.source.model_dump(mode="json", exclude={"path"})],
                          sort_keys=True, default=str)  # fmt: skip
        return "shards:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _rows(manifest: Manifest, *, split: str, seed: int) -> np.ndarray:
    """Positions of a split in the order in which they can be read."""
    order = ShardOrder(manifest, seed=seed)
    rows = np.concatenate([order.shard_rows(0, n) for n in range(manifest.shard_count)])
    return rows[(rows % HELD_OUT == HELD_OUT - 1) == (split == "test")]


def _padded(symbols: np.ndarray, *, length: int) -> np.ndarray:
    row = np.full(length, PAD, dtype=np.int64)
    row[: len(symbols)] = symbols[:length]
    return row
