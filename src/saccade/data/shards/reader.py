"""Read shards in an order that is known beforehand, also while they are still being built.

A shard folder and a seed flow in, samples flow out. In the first epoch shards come in the order in
which they are built, so training starts with the first one; later epochs shuffle them; within a
shard samples are always shuffled. The order is a pure function of (seed, position), whatever the
builder's pace, so a position is all there is to save, and each sample comes once per epoch. A shard
that is not there yet is waited for while a builder is alive. A damaged one is named; it is left out
only if told. At most two shards are in memory.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from saccade.config.errors import InputError, OutsideError
from saccade.data.samples import DataError
from saccade.data.shards.consolidate import Block, read_block
from saccade.data.shards.manifest import Manifest, is_building, read_manifest

SHARDS_IN_MEMORY = 2
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 30.0

log = logging.getLogger(__name__)


class ShardOrder:
    """The endless order of positions; `take` is what `training.batches.SampleOrder` offers."""

    def __init__(self, manifest: Manifest, *, seed: int) -> None:
        self.manifest = manifest
        self.size = manifest.samples
        self.seed = seed
        self._shard: tuple[int, int, np.ndarray] | None = None
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def take(self, start: int, count: int) -> list[int]:
        """Sample positions at places [start, start + count)."""
        taken: list[int] = []
        while len(taken) < count:
            epoch, offset = divmod(start + len(taken), self.size)
            shard, within = self._find(epoch, offset)
            rows = self.shard_rows(epoch, shard)
            taken += rows[within : within + count - len(taken)].tolist()
        return taken

    def shards(self, epoch: int) -> np.ndarray:
        """Shards in the order of one epoch."""
        return self._bounds(epoch)[0]

    def shard_rows(self, epoch: int, shard: int) -> np.ndarray:
        """One shard's positions in the order of one epoch."""
        if self._shard is None or self._shard[:2] != (epoch, shard):
            positions = self.manifest.shard_range(shard)
            rng = np.random.default_rng([self.seed, epoch, shard])
            self._shard = epoch, shard, positions.start + rng.permutation(len(positions))
        return self._shard[2]

    def _find(self, epoch: int, offset: int) -> tuple[int, int]:
        """The shard at a place of an epoch, and the place within it."""
        shards, ends = self._bounds(epoch)
        number = int(np.searchsorted(ends, offset, side="right"))
        return int(shards[number]), offset - (int(ends[number - 1]) if number else 0)

    def _bounds(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self._epoch is None or self._epoch[0] != epoch:
            shards = np.arange(self.manifest.shard_count)
            if epoch:
                shards = np.random.default_rng([self.seed, epoch]).permutation(shards)
            sizes = [len(self.manifest.shard_range(int(shard))) for shard in shards]
            self._epoch = epoch, shards, np.cumsum(sizes)
        return self._epoch[1], self._epoch[2]


class ShardReader(Dataset[dict[str, Any]]):
    """Samples by position: `id` and tensors `sketches`, `targets`, ...; waits for the builder."""

    def __init__(
        self,
        folder: Path,
        *,
        patience_s: float = PATIENCE_SECONDS,
        poll_s: float = POLL_SECONDS,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder = folder
        self.patience_s, self.poll_s, self.stop = patience_s, poll_s, stop
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self.manifest = self._wait(lambda found: found is not None, what="the manifest")

    def __len__(self) -> int:
        return self.manifest.samples

    def __getitem__(self, position: int) -> dict[str, Any]:
        if not 0 <= position < len(self):
            raise IndexError(position)
        shard, row = divmod(position, self.manifest.shard_size)
        return self.block(shard).row(row)

    def kind(self, sample: dict[str, Any]) -> str:
        """Name of the source a sample came from."""
        return str(self.manifest.about["kinds"][int(sample["kinds"])])

    def ready(self, shard: int) -> bool:
        """Whether a shard is there now."""
        if shard >= len(self.manifest.shards):
            self.manifest = read_manifest(self.folder) or self.manifest
        return shard < len(self.manifest.shards)

    def block(self, shard: int) -> Block:
        """A whole shard, verified when it is read; raises `DataError` naming a damaged one."""
        if shard in self._blocks:
            self._blocks.move_to_end(shard)
            return self._blocks[shard]
        if not self.ready(shard):
            self.manifest = self._wait(
                lambda found: found is not None and shard < len(found.shards),
                what=f"shard {shard + 1} of {self.manifest.shard_count}",
            )
        while len(self._blocks) >= SHARDS_IN_MEMORY:
            self._blocks.popitem(last=False)
        self._blocks[shard] = read_block(self.folder, self.manifest.shards[shard])
        return self._blocks[shard]

    def _wait(self, enough: Callable[[Manifest | None], bool], *, what: str) -> Manifest:
        alone_since = None
        while True:
            # looked at before the manifest: a builder that ends in between has written it
            alive = is_building(self.folder)
            found = read_manifest(self.folder)
            if enough(found):
                assert found is not None
                return found
            now = time.monotonic()
            alone_since = None if alive else (alone_since if alone_since is not None else now)
            if self.stop():
                raise InterruptedError(f"stopped while waiting for {what} in {self.folder}")
            if alone_since is not None and now - alone_since >= self.patience_s:
                raise self._nobody_builds(found, what=what)
            time.sleep(self.poll_s)

    def _nobody_builds(self, found: Manifest | None, *, what: str) -> Exception:
        if found is None:
            return InputError(
                f"{self.folder}: there are no shards\n  fix: `saccade data build shards"
                f" shards.path={self.folder}`"
            )
        return OutsideError(
            f"{self.folder}: waited {self.patience_s:.0f} s for {what}, and no builder is running"
            f" ({found.built} of {found.samples} samples are built)"
            "\n  fix: continue it with `saccade data build shards`, then run this again"
        )


class ShardStream(IterableDataset[dict[str, Any]]):
    """Samples from a position on, for `epochs` epochs; the position can be saved and set.

    `rank` of `world` takes every `world`-th sample. The position counts samples of all ranks, and
    names the next one: saved after a sample was used, nothing is lost or repeated.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        seed: int,
        epochs: int = 1,
        rank: int = 0,
        world: int = 1,
        on_damage: Literal["stop", "skip"] = "stop",
    ) -> None:
        self.reader = reader
        self.order = ShardOrder(reader.manifest, seed=seed)
        self.epochs, self.rank, self.world = epochs, rank, world
        self.on_damage = on_damage
        self.position = 0
        self.skipped: list[str] = []
        """Files left out, as they were met."""

    def state_dict(self) -> dict[str, int]:
        """What must be saved to continue."""
        return {"position": self.position, "seed": self.order.seed, "samples": self.order.size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where another stream stopped; raises InputError for another order."""
        mine = self.state_dict()
        for name in ("seed", "samples"):
            if state[name] != mine[name]:
                raise InputError(
                    f"{self.reader.folder}: the saved position belongs to {name} {state[name]}, not"
                    f" {mine[name]}\n  fix: read the same shards with the same seed"
                )
        self.position = state["position"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise ValueError("a stream has one position: read it with training.workers=0")
        while self.position < self.epochs * self.order.size:
            (sample,) = self.order.take(self.position, 1)
            shard = sample // self.reader.manifest.shard_size
            try:
                mine = self.position % self.world == self.rank
                row = self.reader[sample] if mine else None
            except DataError as error:
                if self.on_damage == "stop":
                    raise
                self._leave_out(shard, error)
                continue
            self.position += 1
            if row is not None:
                yield row

    def _leave_out(self, shard: int, error: DataError) -> None:
        log.warning("%s: %s; its samples are left out", error.where, error.problem)
        self.skipped.append(Path(error.where).name)
        epoch, offset = divmod(self.position, self.order.size)
        _, within = self.order._find(epoch, offset)
        self.position += len(self.order.manifest.shard_range(shard)) - within
