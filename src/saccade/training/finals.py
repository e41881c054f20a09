"""The files of a finished run, brought out of its store: checked first, then put in place.

What `Mirror.push_finals` delivered (`runs/NAME/final/` with a list of checksums) flows in; the
same files in a run directory flow out. Each is written aside and compared with its checksum; only
when all are whole are they renamed into place. A kill at any moment costs nothing: the next call
goes on with what is whole already. DONE is the caller's, after this. No torch here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.config.errors import FULL, SaccadeError
from saccade.training.checkpoints import CHECKSUMS, COMPLETE, disk_full
from saccade.training.store import Store, StoreError, file_sha256, safe_name

AREA = ".tmp-fetch"
"""Folder in the run directory where files wait until all are whole."""
PART = ".tmp-part"
TRAIN_AGAIN = "train again under another run.name, or restore the object"


@dataclass(frozen=True)
class Brought:
    """What one call moved: files that were not here yet, their size, and files of the run."""

    files: int = 0
    bytes: int = 0
    of: int = 0


def bring_finals(
    store: Store,
    *,
    final: str,
    folder: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Brought:
    """Bring everything below `final` into a folder; files that are there and whole stay.

    Raises StoreError for a file that is missing or differs from its checksum, OutsideError for a
    full disk; nothing in the folder has changed then.
    """
    entries = _listing(store, final=final)
    missing = {name: entry for name, entry in entries.items() if not is_whole(folder / name, entry)}
    size = sum(int(entry["bytes"]) for entry in missing.values())
    area = folder / AREA
    if missing:
        say(f"fetching {len(missing)} file(s), {size / 1e6:.1f} MB, from {store.address}")
    for name, entry in missing.items():
        if not is_whole(area / name, entry):
            bring_file(store, f"{final}/{name}", area / name, entry)
    # a folder's COMPLETE vouches for its other files
    for name in sorted(missing, key=lambda one: (one.rpartition("/")[2] == COMPLETE, one)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (area / name).replace(folder / name)
    shutil.rmtree(area, ignore_errors=True)
    return Brought(len(missing), size, len(entries))


def _listing(store: Store, *, final: str) -> Mapping[str, Mapping[str, Any]]:
    content = store.read(f"{final}/{CHECKSUMS}")
    try:
        entries = json.loads(content or b"")["files"]
    except (ValueError, KeyError, TypeError) as error:
        what = "is missing" if content is None else "cannot be read"
        raise _damaged(store, f"{final}/{CHECKSUMS}", what) from error
    return {safe_name(name): entry for name, entry in entries.items()}


def bring_file(
    store: Store, name: str, target: Path, entry: Mapping[str, Any], *, fix: str = TRAIN_AGAIN
) -> None:
    """Bring one file, whole or not at all: written aside, compared with its entry, renamed.

    Raises StoreError when what the store has differs, with `fix` as what to do about it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{PART}-{target.name}")
    try:
        store.fetch(name, part)
    except SaccadeError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in FULL:
            raise disk_full(target.parent, cause) from error
        raise
    if not is_whole(part, entry):
        part.unlink()
        raise _damaged(store, name, "differs from its checksum", fix=fix)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)


def is_whole(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file has the size and SHA-256 of its entry."""
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    return file_sha256(path) == entry["sha256"]


def _damaged(store: Store, name: str, problem: str, *, fix: str = TRAIN_AGAIN) -> StoreError:
    return StoreError(f"{store.address}/{name}: {problem}\n  fix: {fix}")
