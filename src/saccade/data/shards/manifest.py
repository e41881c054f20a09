"""The list of what a shard folder holds, with checksums: written whole or not at all.

A build writes `manifest.json` after every file it finished; readers follow it. It says what the
shards were made from (`plan`: any difference is another build), how many samples there will be, and
for every file its samples, size and SHA-256. What is not listed does not exist: a file that a kill
left behind is written again. Sample p lies in batch p // batch_size and in shard
p // (batch_size * batches_per_shard), so places are known before anything is built. Files that are
not of a builder's making are never touched, and a folder of such files is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError, OutsideError
from saccade.data.samples import DataError

FORMAT = 2
MANIFEST = "manifest.json"
HELD_OUT = "held_out.bin"
LOCK = ".building"
BUILD_LOG = "build.jsonl"
OUTPUT_LOG = "builder.log"
CACHE = "cache"
SHARD_FILES = re.compile(r"(batch_\d{5,}|consolidated_\d{3,})\.safetensors")
"""Names of the files that hold samples; nothing else is ever removed, but what stands beside."""
BESIDE = (MANIFEST, HELD_OUT, BUILD_LOG)
LOCK_SECONDS, LOCK_POLL_SECONDS = 30.0, 0.05
"""How long a builder waits for another to end: longer than one whose parent is gone goes on."""
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A finished file: samples `first : first + samples`, its size and checksum."""

    file: str
    first: int
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything known about a shard folder."""

    plan: Mapping[str, Any]
    about: Mapping[str, Any]
    samples: int
    batch_size: int
    batches_per_shard: int
    shards: tuple[Entry, ...] = ()
    batches: tuple[Entry, ...] = ()
    rebuilding: bool = False
    """Whether this build replaces another and is not finished."""
    format: int = field(default=FORMAT)

    @property
    def shard_size(self) -> int:
        """Samples of a full shard."""
        return self.batch_size * self.batches_per_shard

    @property
    def shard_count(self) -> int:
        """Shards of the finished build."""
        return -(-self.samples // self.shard_size)

    @property
    def batch_count(self) -> int:
        """Batches of the finished build."""
        return -(-self.samples // self.batch_size)

    @property
    def built(self) -> int:
        """Samples encoded so far."""
        last = (*self.shards, *self.batches)[-1:]
        return last[0].first + last[0].samples if last else 0

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return len(self.shards) == self.shard_count

    def shard_range(self, shard: int) -> range:
        """Positions of a shard's samples."""
        return range(shard * self.shard_size, min(self.samples, (shard + 1) * self.shard_size))

    def shard_batches(self, shard: int) -> range:
        """Batches of a shard."""
        first = shard * self.batches_per_shard
        return range(first, min(self.batch_count, first + self.batches_per_shard))

    def with_files(
        self, *, shards: tuple[Entry, ...] | None = None, batches: tuple[Entry, ...] | None = None
    ) -> Manifest:
        """The same build with other files."""
        changed = replace(
            self,
            shards=self.shards if shards is None else shards,
            batches=self.batches if batches is None else batches,
        )
        return replace(changed, rebuilding=self.rebuilding and not changed.complete)


def batch_name(batch: int) -> str:
    """File name of a batch."""
    return f"batch_{batch:05d}.safetensors"


def shard_name(shard: int) -> str:
    """File name of a consolidated shard."""
    return f"consolidated_{shard:03d}.safetensors"


def read_manifest(folder: Path) -> Manifest | None:
    """Read a folder's manifest; None when there is none yet."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise InputError(
                f"{path}: format {found['format']}, this version reads {FORMAT}"
                "\n  fix: build again with --rebuild"
            )
        shards = tuple(Entry(**entry) for entry in found.pop("shards"))
        batches = tuple(Entry(**entry) for entry in found.pop("batches"))
        return Manifest(**found, shards=shards, batches=batches)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise DataError(
            f"the manifest is damaged ({error})", where=str(path), fix="build with --rebuild"
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put the manifest in place in one step."""
    content = json.dumps(asdict(manifest), indent=1).encode() + b"\n"
    write_whole(folder / MANIFEST, content)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to disk and rename it; raises OutsideError when full."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OutsideError(
            f"{path}: cannot be written ({error.strerror}); everything before it is kept"
            "\n  fix: free disk space, then run the same command to continue"
        ) from error


def describe(file: str, content: bytes, *, positions: range) -> Entry:
    """The manifest's line about a file that is about to be written."""
    sha256 = hashlib.sha256(content).hexdigest()
    return Entry(file, positions.start, len(positions), len(content), sha256)


def fault(folder: Path, entry: Entry) -> str | None:
    """What is wrong with a listed file, or None; reads all of it."""
    path = folder / entry.file
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"{size} bytes instead of {entry.bytes} (truncated?)"
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return None if digest.hexdigest() == entry.sha256 else "content differs from its checksum"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the parts of two plans that differ."""
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def is_ours(name: str) -> bool:
    """Whether a builder makes files of this name."""
    if name.startswith(".") and name.endswith(".tmp"):
        name = name[1:-4]
    ours = (*BESIDE, LOCK, OUTPUT_LOG, CACHE)
    return name in ours or SHARD_FILES.fullmatch(name) is not None


def litter(folder: Path) -> list[Path]:
    """Files of samples, and what writing left aside when it was killed."""
    made = (*folder.glob("*.safetensors"), *folder.glob(".*.tmp"))
    return [
        file
        for file in made
        if SHARD_FILES.fullmatch(file.name) or (file.name.endswith(".tmp") and is_ours(file.name))
    ]


def clear(folder: Path) -> None:
    """Remove shards, batches and manifest; the cache stays. The manifest goes first."""
    for name in BESIDE:
        (folder / name).unlink(missing_ok=True)
    for file in litter(folder):
        file.unlink(missing_ok=True)


def refuse_other_folder(folder: Path) -> None:
    """Raise InputError for a folder that holds something and is not a folder of shards."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: this is a file\n  fix: a folder of its own as shards.path")
    if not folder.is_dir() or _has_manifest(folder):
        return
    others = sorted(file.name for file in folder.iterdir() if not is_ours(file.name))
    if (folder / MANIFEST).exists() and _is_json(folder / MANIFEST):
        others.insert(0, MANIFEST)  # somebody else's
    if others:
        raise InputError(
            f"{folder}: this is no folder of shards: there is no manifest of them, but"
            f" {', '.join(others[:3])}{' and more' if others[3:] else ''}"
            "\n  fix: a folder of its own as shards.path"
        )


def _has_manifest(folder: Path) -> bool:
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"plan", "batches", "batches_per_shard"} <= set(found)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


@contextmanager
def builder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder as its only builder; a kill lets go of it.

    Refuses a folder that is not one of shards before anything in it is touched. Waits for another
    builder to end, since one whose parent was killed finishes its batch.
    """
    refuse_other_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _locked(descriptor):
            if time.monotonic() >= deadline:
                owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                raise InputError(
                    f"{folder}: another process (pid {owner or 'unknown'}) is building here, still"
                    f" after {LOCK_SECONDS:.0f} s"
                    "\n  fix: wait for it or stop it, or choose another shards.path"
                )
            time.sleep(LOCK_POLL_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_building(folder: Path) -> bool:
    """Whether a builder is alive."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # shared: two readers that look at the same moment must not take each other for a builder
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
