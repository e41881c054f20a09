"""A built folder of grounding rows: made aside, put in place in one step, never overwritten.

A plan (what the rows are made from) flows in; a folder to write into flows out, and becomes the
wanted one when everything in it is on disk. `manifest.json` holds the plan and checksums, so that
the same build again is known and left as it is, and anything else at the place is refused. A kill
leaves the folder aside, which the next build of the same place clears. Left out: the rows
(`prepare.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.data.tables import file_digest

MANIFEST = "manifest.json"
IMAGES = "images"
KIND = "saccade grounding rows"


def built_before(folder: Path, *, plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of an equal build, or None where nothing is; raises InputError for the rest."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: this is a file\n  fix: a folder of its own as --out")
    inside = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    if not inside:
        return None
    manifest = _manifest(folder)
    if manifest is None:
        raise InputError(
            f"{folder}: holds {', '.join(inside[:3])}{' and more' if inside[3:] else ''}, which"
            " this command did not write\n  fix: a folder of its own as --out"
        )
    other = [name for name in {**manifest["plan"], **plan}
             if manifest["plan"].get(name) != plan.get(name)]  # fmt: skip
    if other:
        raise InputError(
            f"{folder}: holds rows that were built otherwise; different: {', '.join(other)}"
            "\n  fix: another folder as --out, or remove this one"
        )
    for name, digest in {**manifest["files"], **manifest["picture_files"]}.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise InputError(
                f"{folder / name}: missing or not as it was written"
                "\n  fix: remove the folder and build again"
            )
    return manifest


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A folder to write into; it takes the place of `folder` when the block ends well.

    Raises InputError where no folder can be put.
    """
    folder = folder.resolve()
    if Path.cwd().is_relative_to(folder):
        raise InputError(
            f"{folder}: the command runs in this folder, so it cannot be replaced"
            "\n  fix: a folder of its own as --out"
        )
    aside = folder.parent / f".{folder.name}.building"
    try:
        aside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror})\n  fix: another folder as --out"
        ) from None
    descriptor = os.open(aside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another process is building here\n  fix: wait for it, or another --out"
            ) from None
        try:
            _clear(aside)
            (aside / IMAGES).mkdir()
            yield aside
            _flush(aside)
            aside.replace(folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    wanted = {"plan", "files", "pictures", "rows"}
    ours = isinstance(found, dict) and found.get("kind") == KIND and wanted <= set(found)
    return found if ours else None


def _clear(aside: Path) -> None:
    """Remove what a killed build left."""
    for one in aside.iterdir():
        shutil.rmtree(one) if one.is_dir() else one.unlink()


def _flush(folder: Path) -> None:
    """Have everything on disk before it gets its name."""
    for one in (*folder.rglob("*"), folder):
        descriptor = os.open(one, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
