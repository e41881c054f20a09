"""Shards as a source of puzzles: capsules of a picture in front, symbols asked for.

An `EncodedSource` flows in; samples flow out whose facts hold capsules [C, E], input symbols and
target symbols, as the recipe `recursion` reads them (`generate/puzzles.py`). In the first epoch
shards come in the order of building, so a training may follow a builder that is at work; later
epochs shuffle shards, too. What is held out is the builder's to say (`held_out.py`). Where the
symbols of the question are read, too, they stand in the cells; else the picture is all there is.
Left out: children and single features.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np

from saccade.config.errors import InputError
from saccade.config.shards import EncodedSource
from saccade.data.generate.puzzles import CAPSULES, IGNORED, PAD, puzzle_sample
from saccade.data.samples import Sample
from saccade.data.shards.held_out import read_held_out
from saccade.data.shards.reader import PATIENCE_SECONDS, ShardReader


def _letter(byte: int) -> str:
    """A sign for a byte: itself where it can be seen, and no two alike."""
    if byte == ord("?"):
        return "\uff1f"  # a wide one: the plain one marks cells that are not asked for
    if byte == 127:
        return "\u2421"
    if byte < 32:
        return chr(0x2400 + byte)  # pictures of control characters
    return chr(byte) if byte < 127 else chr(0x2800 + byte)  # patterns of dots


LETTERS = "\u00b7\u220e\u24ea" + "".join(chr(0x2460 + n) for n in range(9))
LETTERS += "".join(map(_letter, range(256)))
"""A middle dot for nothing, a black box for the end, circled digits for colours, and bytes: all are
different, so text tells symbols exactly."""


class EncodedPuzzles:
    """Samples of a shard folder."""

    def __init__(self, source: EncodedSource, *, patience_s: float = PATIENCE_SECONDS) -> None:
        self.source = source
        self.reader = ShardReader(source.path, patience_s=patience_s)
        manifest = self.reader.manifest
        held_out = read_held_out(source.path, manifest)
        self.rows = np.flatnonzero(held_out == (source.split == "test"))
        """Positions of the split, in the order of building."""
        if not len(self.rows):
            raise InputError(
                f"{source.path}: nothing is held out, as all {manifest.samples} samples show one"
                " document, picture or task\n  fix: build shards of more, or take data.eval from"
                " elsewhere"
            )
        given, asked = manifest.plan["symbols"]
        self.length = max(asked, given) if source.symbols else asked
        self.capsules: tuple[int, int] = tuple(manifest.about["features"]["sketches"])

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

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Positions in the order of one epoch: a function of seed and epoch alone.

        Samples within a shard are always shuffled, shards from the second epoch on.
        """
        seed, manifest = self.source.seed, self.reader.manifest
        shards = np.arange(manifest.shard_count)
        if epoch:
            shards = np.random.default_rng([seed, epoch]).permutation(shards)
        bounds = np.searchsorted(self.rows, np.arange(len(shards) + 1) * manifest.shard_size)
        return np.concatenate([
            np.random.default_rng([seed, epoch, shard]).permutation(
                np.arange(bounds[shard], bounds[shard + 1])
            )
            for shard in shards.tolist()
        ])  # fmt: skip

    def leave_out_broken(self) -> list[str]:
        """Leave out the samples of finished shards that are damaged; returns what was wrong."""
        manifest = self.reader.manifest
        shard_of_row = self.rows // manifest.shard_size
        whole, told = np.ones(len(self.rows), dtype=bool), []
        for shard, entry in enumerate(manifest.shards):
            problem = self.reader.fault(shard)
            if problem is not None:
                whole &= shard_of_row != shard
                told.append(
                    f"{self.source.path / entry.file}: {problem}; its {entry.samples} samples are"
                    " left out"
                )
        if not whole.any():
            raise InputError(
                f"{self.source.path}: no sound shard holds samples of split"
                f" {self.source.split}\n  fix: `saccade data build shards --repair`"
            )
        self.rows = self.rows[whole]
        return told

    def fingerprint(self) -> str:
        """Equal for equal plans of the build, whether it is finished or not."""
        manifest = asdict(self.reader.manifest)
        names = ("plan", "samples", "batch_size", "batches_per_shard")
        about = {name: manifest[name] for name in names}
        text = json.dumps([about, self.source.model_dump(mode="json", exclude={"path"})],
                          sort_keys=True, default=str)  # fmt: skip
        return "shards:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _padded(symbols: np.ndarray, *, length: int) -> np.ndarray:
    row = np.full(length, PAD, dtype=np.int64)
    row[: len(symbols)] = symbols[:length]
    return row
