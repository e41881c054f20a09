"""Build shards: someone draws ahead, the encoder works, a kill costs one batch at most.

A `Mixture` and an `Encoder` flow in; `batch_00000.safetensors` and, of every so many batches,
`consolidated_000.safetensors` flow out, listed in the manifest as they are finished. Which samples
a batch holds and what its bytes are follows from the plan alone, so a build that was killed at any
moment and continued ends in the same files as one in peace. Memory is bounded by what is drawn
ahead (`drawing.py`) and by one shard. Where the encoder comes from is the caller's business.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from saccade.config.errors import InputError, Preempted
from saccade.config.shards import ShardsConfig
from saccade.data.shards.cache import GB, PictureCache
from saccade.data.shards.consolidate import Block, damaged, join, read_block, to_bytes
from saccade.data.shards.drawing import Drawer, Drawn, draw_ahead
from saccade.data.shards.encode import RULE, Encoder, Pooling
from saccade.data.shards.estimate import Estimate, check_room, estimate
from saccade.data.shards.held_out import choose_held_out, to_content
from saccade.data.shards.manifest import (
    BUILD_LOG,
    CACHE,
    HELD_OUT,
    Manifest,
    batch_name,
    builder_lock,
    clear,
    describe,
    differences,
    fault,
    litter,
    read_manifest,
    shard_name,
    write_manifest,
    write_whole,
)
from saccade.data.shards.samples import VOCABULARY, pad
from saccade.data.shards.sources import Mixture

PACE_SECONDS = 5.0

Progress = Callable[[str, int, int], None]
Stop = Callable[[], bool]


@dataclass
class Summary:
    """What one call did; times in seconds."""

    samples: int
    held_out: int = 0
    built: int = 0
    seconds: float = 0.0
    encode_seconds: float = 0.0
    wait_seconds: float = 0.0
    cache_hits: int = 0
    first_shard_seconds: float | None = None
    repaired: list[str] = field(default_factory=list)
    complete: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the throughput."""
        rate = self.built / self.seconds if self.seconds else 0.0
        return {**asdict(self), "samples_per_second": round(rate, 2)}


class Builder:
    """One shard folder and what goes into it."""

    def __init__(self, config: ShardsConfig, *, mixture: Mixture, encoder: Encoder) -> None:
        self.config, self.mixture, self.encoder = config, mixture, encoder
        self.folder = config.path
        self.pooling = Pooling(encoder.grid, capsules=config.capsules, children=config.children)
        self.features = self._feature_shapes()
        self.kinds = [source.kind for source in mixture.sources]
        self.held_out = choose_held_out(mixture.contents())
        about = [RULE, encoder.digest, json.dumps(self.features), str(torch.get_num_threads())]
        self.cache = PictureCache(
            self.folder / CACHE, context="|".join(about), shapes=self.features,
            max_bytes=int(config.cache_gb * GB),
        )  # fmt: skip
        self.draw = Drawer(
            mixture, self.cache, encoder.prepare, batch_size=config.batch_size, alone=encoder.alone
        )

    def plan(self) -> Manifest:
        """The build before its first batch."""
        config = self.config
        return Manifest(
            plan={
                "sources": self.mixture.fingerprint(),
                "encoder": self.encoder.digest,
                "pooling": [RULE, config.capsules, config.children, config.keep_tokens],
                "side": config.side,
                "symbols": list(self.mixture.widths),
                # sums of a matrix product depend on it, and shards are equal to the last bit
                "threads": torch.get_num_threads(),
            },
            about={
                "encoder": self.encoder.name,
                "features": {name: list(shape) for name, shape in self.features.items()},
                "kinds": self.kinds,
                "held_out": hashlib.sha256(to_content(self.held_out)).hexdigest(),
                "vocabulary": VOCABULARY,
            },
            samples=len(self.mixture),
            batch_size=config.batch_size,
            batches_per_shard=config.batches_per_shard,
        )

    def estimate(self) -> Estimate:
        """Disk that the whole build takes."""
        return estimate(
            self.plan(), features=self.features, widths=self.mixture.widths,
            cache_bytes=self.cache.max_bytes, folder=self.folder,
        )  # fmt: skip

    def build(
        self,
        *,
        rebuild: bool = False,
        repair: bool = False,
        ready: Callable[[], object] = lambda: None,
        progress: Progress = lambda what, done, total: None,
        stop: Stop = lambda: False,
    ) -> Summary:
        """Build or continue; raises `Preempted` when asked to stop, `DataError` for damage.

        `rebuild` starts over, or continues a start that was interrupted. `ready` is called when
        everything that lies in the folder belongs to this build and is sound.
        """
        with builder_lock(self.folder):
            return self.proceed(
                rebuild=rebuild, repair=repair, ready=ready, progress=progress, stop=stop
            )

    def proceed(
        self,
        *,
        rebuild: bool,
        repair: bool,
        ready: Callable[[], object],
        progress: Progress,
        stop: Stop,
    ) -> Summary:
        """`build` for one who holds the folder's lock already."""
        manifest = self._resume(rebuild=rebuild)
        check_room(self.estimate(), folder=self.folder, built=manifest.built)
        summary = Summary(samples=manifest.samples, held_out=int(self.held_out.sum()))
        for shard in self._verify(manifest, repair=repair):
            manifest = self._repair(manifest, shard, progress=progress, stop=stop)
            summary.repaired.append(shard_name(shard))
        ready()
        return self._run(manifest, summary, progress=progress, stop=stop)

    def _feature_shapes(self) -> dict[str, tuple[int, ...]]:
        config, width = self.config, self.encoder.width
        shapes: dict[str, tuple[int, ...]] = {"sketches": (config.capsules, width)}
        if config.children:
            shapes["children"] = (config.capsules, config.children, width)
        if config.keep_tokens:
            rows, columns = self.encoder.grid
            shapes["tokens"] = (rows * columns, width)
        return shapes

    def _resume(self, *, rebuild: bool) -> Manifest:
        """The build as it stands; what belongs to no build, or to another one, is gone."""
        fresh = self.plan()
        found = self._continued(fresh, rebuild=rebuild)
        marks = to_content(self.held_out)
        if found is None:
            freed = sum(file.stat().st_size for file in litter(self.folder))
            needed = self.estimate()  # nothing is removed for a build that has no room either
            needed = replace(needed, free_bytes=needed.free_bytes + freed)
            check_room(needed, folder=self.folder, built=0)
            clear(self.folder)
            found = replace(fresh, rebuilding=rebuild)
            write_whole(self.folder / HELD_OUT, marks)
            write_manifest(self.folder, found)
        elif not _holds(self.folder / HELD_OUT, marks):
            write_whole(self.folder / HELD_OUT, marks)
        # a batch that reads back differently is encoded again, and so is all that follows it
        sound = []
        for entry in found.batches:
            if fault(self.folder, entry) is not None:
                break
            sound.append(entry)
        manifest = found.with_files(batches=tuple(sound))
        listed = {entry.file for entry in (*manifest.shards, *manifest.batches)}
        for file in litter(self.folder):
            if file.name not in listed:
                file.unlink()
        if manifest != found:
            write_manifest(self.folder, manifest)
        return manifest

    def _continued(self, fresh: Manifest, *, rebuild: bool) -> Manifest | None:
        """The build in the folder, where it is this one; None to start anew."""
        try:
            found = read_manifest(self.folder)
        except InputError:
            if not rebuild:
                raise
            return None
        if found is None:
            return None
        changed = differences(found.plan, json.loads(json.dumps(fresh.plan)))
        sizes = ("samples", "batch_size", "batches_per_shard")
        changed += [name for name in sizes if getattr(found, name) != getattr(fresh, name)]
        if rebuild:
            return found if found.rebuilding and not changed else None
        if changed:
            raise InputError(
                f"{self.folder}: holds shards of another plan (differs in {', '.join(changed)})"
                "\n  fix: --rebuild to start over, or another shards.path"
            )
        return found

    def _verify(self, manifest: Manifest, *, repair: bool) -> list[int]:
        broken = []
        for number, entry in enumerate(manifest.shards):
            problem = fault(self.folder, entry)
            if problem is None:
                continue
            if not repair:
                raise damaged(self.folder / entry.file, problem)
            broken.append(number)
        return broken

    def _repair(
        self, manifest: Manifest, shard: int, *, progress: Progress, stop: Stop
    ) -> Manifest:
        name, batches = shard_name(shard), manifest.shard_batches(shard)
        blocks: list[Block] = []
        for batch in batches:
            self._heed(stop, manifest)
            progress(f"repairing {name}", len(blocks), len(batches))
            blocks.append(self._encode(self.draw(batch)))
        content = to_bytes(join(blocks))
        entry = describe(name, content, positions=manifest.shard_range(shard))
        write_whole(self.folder / name, content)
        shards = (*manifest.shards[:shard], entry, *manifest.shards[shard + 1 :])
        repaired = manifest.with_files(shards=shards)
        write_manifest(self.folder, repaired)
        return repaired

    def _heed(self, stop: Stop, manifest: Manifest) -> None:
        if stop():
            raise Preempted(
                f"{self.folder}: stopped at {manifest.built} of {manifest.samples} samples"
                "\n  to continue: run the same command"
            )

    def _run(
        self, manifest: Manifest, summary: Summary, *, progress: Progress, stop: Stop
    ) -> Summary:
        started = time.monotonic()
        manifest = self._join_full(manifest)
        first = len(manifest.shards) * manifest.batches_per_shard + len(manifest.batches)
        first = min(first, manifest.batch_count)
        ahead = draw_ahead(
            self.draw, range(first, manifest.batch_count),
            processes=self.config.drawers, depth=self.config.queue_batches,
        )  # fmt: skip
        pace = _Pace(started)
        try:
            for _ in range(first, manifest.batch_count):
                self._heed(stop, manifest)
                waited = time.monotonic()
                drawn = ahead.take()
                summary.wait_seconds += time.monotonic() - waited
                manifest = self._finish_batch(manifest, drawn, summary)
                if manifest.shards and summary.first_shard_seconds is None:
                    summary.first_shard_seconds = time.monotonic() - started
                progress(pace.label(summary.built), manifest.built, manifest.samples)
        finally:
            ahead.close()
        summary.seconds = time.monotonic() - started
        summary.complete = manifest.complete
        return summary

    def _finish_batch(self, manifest: Manifest, drawn: Drawn, summary: Summary) -> Manifest:
        started = time.monotonic()
        block = self._encode(drawn)
        summary.encode_seconds += time.monotonic() - started
        summary.built += len(block.ids)
        summary.cache_hits += len(drawn.known)
        content = to_bytes(block)
        entry = describe(batch_name(drawn.batch), content, positions=drawn.positions)
        write_whole(self.folder / entry.file, content)
        manifest = manifest.with_files(batches=(*manifest.batches, entry))
        write_manifest(self.folder, manifest)
        joined = self._join_full(manifest)
        if joined != manifest:
            self._log(joined, summary)
        return joined

    def _join_full(self, manifest: Manifest) -> Manifest:
        """Make a consolidated shard when its batches are all there, then drop them."""
        shard = len(manifest.shards)
        if shard == manifest.shard_count:
            return manifest
        if len(manifest.batches) < len(manifest.shard_batches(shard)):
            return manifest
        content = to_bytes(join([read_block(self.folder, entry) for entry in manifest.batches]))
        entry = describe(shard_name(shard), content, positions=manifest.shard_range(shard))
        write_whole(self.folder / entry.file, content)
        parts = manifest.batches
        manifest = manifest.with_files(shards=(*manifest.shards, entry), batches=())
        # the parts go only after the manifest names the whole: a kill in between leaves litter
        write_manifest(self.folder, manifest)
        for part in parts:
            (self.folder / part.file).unlink(missing_ok=True)
        return manifest

    def _encode(self, drawn: Drawn) -> Block:
        rows = dict(drawn.known)
        if drawn.prepared:
            tokens_BTD = self.encoder.encode(list(drawn.prepared.values()))
            pooled = self.pooling(tokens_BTD)
            if self.config.keep_tokens:
                pooled["tokens"] = tokens_BTD.half()
            for row, i in enumerate(drawn.prepared):
                rows[i] = {name: values[row] for name, values in pooled.items()}
                self.cache.put(drawn.keys[i], rows[i])
        widths = self.mixture.widths
        kinds = [self.mixture.source_of(position) for position in drawn.positions]
        symbols = {
            "inputs": [pad(row, width=widths[0]) for row in drawn.inputs],
            "targets": [pad(row, width=widths[1]) for row in drawn.targets],
        }
        tensors = {
            name: torch.stack([rows[i][name] for i in range(len(rows))]) for name in self.features
        }
        tensors |= {
            name: torch.stack([torch.from_numpy(row) for row in made])
            for name, made in symbols.items()
        }
        tensors["positions"] = torch.tensor(list(drawn.positions), dtype=torch.int64)
        tensors["kinds"] = torch.tensor(kinds, dtype=torch.uint8)
        return Block(drawn.ids, tensors)

    def _log(self, manifest: Manifest, summary: Summary) -> None:
        entry = manifest.shards[-1]
        line = {
            "time": time.time(), "file": entry.file, "samples": manifest.built,
            "bytes": entry.bytes, "encode_seconds": round(summary.encode_seconds, 3),
            "wait_seconds": round(summary.wait_seconds, 3), "cache_hits": summary.cache_hits,
        }  # fmt: skip
        with (self.folder / BUILD_LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class _Pace:
    """The throughput in words, told anew every few seconds."""

    def __init__(self, started: float) -> None:
        self._started = self._told = started
        self._label = "encoding"

    def label(self, built: int) -> str:
        now = time.monotonic()
        if now - self._told >= PACE_SECONDS:
            self._told = now
            self._label = f"encoding, {built / (now - self._started):.1f} samples/s"
        return self._label


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
