"""A folder of pages that were drawn once.

A page is one .json (boxes, tree, digests) beside one or two pictures. Everything is written aside
and renamed, the .json last, so a page is there whole or not at all, whoever else writes it or dies
meanwhile; two processes that draw the same page write the same. Left out: who draws.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError


def default_cache() -> Path:
    """Where drawn pages lie unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "saccade" / "screens"


class PageCache:
    """Pages by name in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def picture(self, name: str, which: str = "page") -> Path:
        """Where a page's picture lies: `page`, or `loading` for what is seen before it."""
        return self.folder / f"{name}.{which}.png"

    def read(self, name: str) -> dict[str, Any] | None:
        """What was stored with `write`, or None where a part of it is missing or cut short."""
        try:
            row = json.loads((self.folder / f"{name}.json").read_bytes())
            for which, size in row["pictures"].items():
                if self.picture(name, which).stat().st_size != size:
                    return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return row

    def write(self, name: str, row: dict[str, Any], *, pictures: dict[str, bytes]) -> None:
        """Store a page; raises `InputError` where the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for which, png in pictures.items():
                self._put(self.picture(name, which), png)
            sizes = {which: len(png) for which, png in pictures.items()}
            text = json.dumps({**row, "pictures": sizes})
            self._put(self.folder / f"{name}.json", text.encode())
        except OSError as error:
            raise InputError(
                f"{self.folder}: drawn pages cannot be kept there ({error})\n"
                "  fix: name another folder with the source's `cache`"
            ) from error

    def _put(self, path: Path, content: bytes) -> None:
        aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            aside.write_bytes(content)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
