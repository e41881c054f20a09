"""How much disk a build will take, told before it starts, and refused when it is not there.

Plain numbers flow in and out: bytes per sample follow from the shapes, headers and ids from the
file format. The peak counts the shard that is being joined while its batches still lie beside it,
and the cache up to its bound.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from saccade.config.errors import OutsideError
from saccade.data.shards.manifest import Manifest

ID_BYTES = 48
HEADER_BYTES = 800
MB = 1e6


@dataclass(frozen=True)
class Estimate:
    """Bytes of one sample, of all shards, of the cache, and the most at any moment."""

    samples: int
    bytes_per_sample: int
    shards_bytes: int
    cache_bytes: int
    peak_bytes: int
    free_bytes: int

    def to_json(self) -> dict[str, int]:
        """Plain numbers."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.samples} samples of {self.bytes_per_sample / 1e3:.1f} kB: shards"
            f" {self.shards_bytes / MB:.0f} MB, cache at most {self.cache_bytes / MB:.0f} MB, peak"
            f" {self.peak_bytes / MB:.0f} MB; {self.free_bytes / MB:.0f} MB are free"
        )


def estimate(
    manifest: Manifest,
    *,
    features: Mapping[str, tuple[int, ...]],
    widths: tuple[int, int],
    cache_bytes: int,
    folder: Path,
) -> Estimate:
    """Add up; `features` are the shapes of one sample's half-precision tensors."""
    values = sum(_size(shape) for shape in features.values())
    per_sample = 2 * values + 2 * sum(widths) + 8 + 1 + ID_BYTES
    shards = per_sample * manifest.samples + HEADER_BYTES * manifest.shard_count
    one_shard = per_sample * min(manifest.samples, manifest.shard_size)
    cache = min(cache_bytes, (2 * values + 32) * manifest.samples)
    existing = folder
    while not existing.exists():
        existing = existing.parent
    return Estimate(
        samples=manifest.samples,
        bytes_per_sample=per_sample,
        shards_bytes=shards,
        cache_bytes=cache,
        peak_bytes=shards + one_shard + cache,
        free_bytes=shutil.disk_usage(existing).free,
    )


def check_room(needed: Estimate, *, folder: Path, built: int) -> None:
    """Raise OutsideError when what is left to build does not fit."""
    left = (needed.samples - built) / max(1, needed.samples)
    if needed.peak_bytes * left > needed.free_bytes:
        raise OutsideError(
            f"{folder}: the build needs {needed.peak_bytes * left / MB:.0f} MB and"
            f" {needed.free_bytes / MB:.0f} MB are free"
            "\n  fix: free space, choose another shards.path, fewer samples (limit) or"
            " shards.cache_gb=0"
        )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for edge in shape:
        size *= edge
    return size
