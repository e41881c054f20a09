"""Read samples of shards by their position, also while they are still being built.

A shard folder flows in, samples flow out, one row of a file at a time: no shard is ever held in
memory. A shard that is not there yet is waited for while a builder is alive. A shard's checksum is
compared once, when it is first read; a damaged one is named. Left out: in which order samples are
read, and which (`puzzles.py`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from saccade.config.errors import InputError, OutsideError
from saccade.data.shards.consolidate import RowFile, damaged
from saccade.data.shards.manifest import Manifest, fault, is_building, read_manifest

FILES_KNOWN = 32
"""Files whose list of ids is remembered."""
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 30.0


class ShardReader(Dataset[dict[str, Any]]):
    """Samples by position: `id` and tensors `sketches`, `targets`, ...; waits for the builder."""

    def __init__(
        self,
        folder: Path,
        *,
        patience_s: float = PATIENCE_SECONDS,
        poll_s: float = POLL_SECONDS,
    ) -> None:
        self.folder = folder
        self.patience_s, self.poll_s = patience_s, poll_s
        self._files: OrderedDict[int, RowFile] = OrderedDict()
        self._faults: dict[int, str | None] = {}
        self.manifest = self._wait(lambda found: found is not None, what="the manifest")

    def __len__(self) -> int:
        return self.manifest.samples

    def __getitem__(self, position: int) -> dict[str, Any]:
        if not 0 <= position < len(self):
            raise IndexError(position)
        shard, row = divmod(position, self.manifest.shard_size)
        return self._file(shard).row(row)

    def kind(self, sample: dict[str, Any]) -> str:
        """Name of the source a sample came from."""
        return str(self.manifest.about["kinds"][int(sample["kinds"])])

    def fault(self, shard: int) -> str | None:
        """What is wrong with a finished shard, or None; its checksum is compared once."""
        if shard not in self._faults:
            self._faults[shard] = fault(self.folder, self.manifest.shards[shard])
        return self._faults[shard]

    def _file(self, shard: int) -> RowFile:
        """A shard's file; raises `DataError` naming a damaged one."""
        known = self._files.pop(shard, None)
        if known is not None and known.unchanged():
            self._files[shard] = known
            return known
        if known is not None:  # built again meanwhile
            del self._faults[shard]
        if known is not None or shard >= len(self.manifest.shards):
            self._follow(shard)
        entry, problem = self.manifest.shards[shard], self.fault(shard)
        if problem is not None:
            raise damaged(self.folder / entry.file, problem)
        while len(self._files) >= FILES_KNOWN:
            self._files.popitem(last=False)
        self._files[shard] = RowFile(self.folder, entry)
        return self._files[shard]

    def _follow(self, shard: int) -> None:
        """Wait until a shard is there."""
        before = self.manifest
        self.manifest = self._wait(
            lambda found: found is not None and shard < len(found.shards),
            what=f"shard {shard + 1} of {before.shard_count}",
        )
        if self.manifest.plan != before.plan or self.manifest.shard_size != before.shard_size:
            raise InputError(
                f"{self.folder}: other shards were built here while these were read"
                "\n  fix: build each plan in a shards.path of its own"
            )

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
