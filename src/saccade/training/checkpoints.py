"""Checkpoint folders: written aside, verified, renamed, pruned.

Files (as functions that write them) flow in and become `checkpoints/step-N/`; on the way back the
newest folder that passes verification is chosen and damaged ones are reported by file name. A
folder holds its files, `checksums.json` (size and SHA-256 of each) and `COMPLETE` (the SHA-256 of
`checksums.json`), written in that order, each flushed to disk; the rename is what makes it exist.
Everything that touches the store is in `_commit` and `_remove`, so another store (a bucket, where
`COMPLETE` is the commit) changes those two. What the files mean is `state.py`'s. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from saccade.config.errors import FULL, OutsideError

CHECKSUMS = "checksums.json"
COMPLETE = "COMPLETE"
STEP_NAME = re.compile(r"step-(\d+)")
CHUNK_BYTES = 1 << 20

Writer = Callable[[BinaryIO], None]
"""Writes the whole content of one file into an open binary file."""


@dataclass(frozen=True)
class Written:
    """A finished checkpoint."""

    folder: Path
    bytes: int


@dataclass(frozen=True)
class Damage:
    """Why a checkpoint cannot be used: the file and what is wrong with it."""

    folder: Path
    file: str
    problem: str

    def __str__(self) -> str:
        return f"{self.folder.name}/{self.file}: {self.problem}"


@dataclass(frozen=True)
class Found:
    """The newest good checkpoint, and the damaged ones that are newer."""

    folder: Path | None
    damaged: tuple[Damage, ...] = ()


class HashingFile:
    """A binary file that hashes what passes through and remembers why writing failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write and hash; serialisers may turn the OSError into something else."""
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(data)
        self.bytes += written
        return written

    def flush(self) -> None:
        """Flush to the operating system."""
        self.file.flush()


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = STEP_NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} is not named step-N")
    return int(match.group(1))


def list_checkpoints(root: Path) -> list[Path]:
    """All checkpoint folders, newest first, verified or not."""
    if not root.is_dir():
        return []
    folders = [path for path in root.iterdir() if STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=step_of, reverse=True)


def write_checkpoint(root: Path, *, step: int, files: Mapping[str, Writer], keep: int) -> Written:
    """Write `root/step-N` so that it exists whole or not at all, then drop old ones.

    Raises OutsideError when the disk is full; the partial folder is gone then and every earlier
    checkpoint untouched. Old ones are removed only after the new one has been read back whole.
    """
    aside = root / f".tmp-step-{step}-{os.getpid()}"
    folder = root / f"step-{step}"
    try:
        size = _commit(aside, folder, files)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if error.errno in FULL:
            raise disk_full(root, error, saving=step) from error
        raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    damage = verify(folder)
    if damage is not None:
        raise OutsideError(
            f"{damage}: the checkpoint reads back differently from what was written"
            "\n  fix: the disk may be failing; continue on another one (earlier checkpoints stay)"
        )
    for old in list_checkpoints(root)[keep:]:
        _remove(old)
    return Written(folder=folder, bytes=size)


def _commit(aside: Path, folder: Path, files: Mapping[str, Writer]) -> int:
    aside.mkdir(parents=True)
    entries = {name: _write_file(aside / name, writer) for name, writer in files.items()}
    listing = json.dumps({"files": entries}, indent=2, sort_keys=True).encode() + b"\n"
    _write_file(aside / CHECKSUMS, lambda file: _write_all(file, listing))
    marker = hashlib.sha256(listing).hexdigest().encode() + b"\n"
    _write_file(aside / COMPLETE, lambda file: _write_all(file, marker))
    sync_folder(aside)
    if folder.exists():  # only ever a damaged one: a good one would have been resumed from
        _remove(folder)
    aside.rename(folder)
    sync_folder(folder.parent)
    return sum(int(entry["bytes"]) for entry in entries.values())


def _write_all(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _write_file(path: Path, writer: Writer) -> dict[str, str | int]:
    with path.open("wb") as raw:
        file = HashingFile(raw)
        try:
            writer(file)  # type: ignore[arg-type]
            raw.flush()
            os.fsync(raw.fileno())
        except Exception as error:
            # torch wraps a failing write in a RuntimeError of its own
            raise (file.error or error) from error
    return {"sha256": file.sha256.hexdigest(), "bytes": file.bytes}


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    # renamed first: a kill in the middle must not leave half a checkpoint under its real name
    doomed = folder.with_name(f".tmp-old-{folder.name}-{os.getpid()}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def disk_full(root: Path, error: OSError, *, saving: int | None = None) -> OutsideError:
    """The message for a full disk, naming what survives."""
    good = newest_good(root).folder
    kept = f"{good} is intact" if good else "there was no earlier checkpoint"
    what = "" if saving is None else f" while saving step {saving}"
    return OutsideError(
        f"{root}: no space left{what} ({error.strerror}); {kept}"
        "\n  fix: free some disk space, then run the same command to continue"
    )


def clean_leftovers(root: Path) -> list[str]:
    """Remove what a killed writer left behind; returns the names."""
    if not root.is_dir():
        return []
    leftovers = [path for path in root.iterdir() if path.name.startswith(".tmp-")]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return sorted(path.name for path in leftovers)


def set_aside(root: Path, damaged: tuple[Damage, ...]) -> None:
    """Rename damaged folders to `damaged-step-N`, so they are never counted or resumed from."""
    for damage in damaged:
        grave = root / f"damaged-{damage.folder.name}"
        shutil.rmtree(grave, ignore_errors=True)
        damage.folder.rename(grave)


def newest_good(root: Path) -> Found:
    """Verify from the newest down and stop at the first whole checkpoint; changes nothing."""
    damaged: list[Damage] = []
    for folder in list_checkpoints(root):
        damage = verify(folder)
        if damage is None:
            return Found(folder=folder, damaged=tuple(damaged))
        damaged.append(damage)
    return Found(folder=None, damaged=tuple(damaged))


def verify(folder: Path) -> Damage | None:
    """Check marker, file list, sizes and SHA-256; returns the first fault found."""
    try:
        marker = (folder / COMPLETE).read_text("ascii").strip()
        listing = (folder / CHECKSUMS).read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        name = CHECKSUMS if (folder / COMPLETE).is_file() else COMPLETE
        return Damage(folder, name, f"unreadable ({error.__class__.__name__})")
    if hashlib.sha256(listing).hexdigest() != marker:
        return Damage(folder, CHECKSUMS, f"does not match {COMPLETE}")
    for name, entry in json.loads(listing)["files"].items():
        problem = _fault(folder / name, entry)
        if problem:
            return Damage(folder, name, problem)
    return None


def _fault(path: Path, entry: Mapping[str, str | int]) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{size} bytes instead of {entry['bytes']} (truncated?)"
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return None if digest.hexdigest() == entry["sha256"] else "content differs from its checksum"
