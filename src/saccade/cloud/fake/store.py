"""Documents on disk: one JSON file each, so that a restarted server knows what there was.

Collections of named documents flow in and out; every change is written aside and renamed before
the call that made it is answered. Readers get copies, so handlers can change them freely.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

Document = dict[str, Any]


class Store:
    """All collections below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._documents: dict[str, dict[str, Document]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*/*.json")):
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                continue  # torn by a power cut: the call it belonged to was never answered
            self._documents.setdefault(path.parent.name, {})[unquote(path.stem)] = document

    def get(self, collection: str, name: str) -> Document | None:
        """One document, or None."""
        with self._lock:
            return copy.deepcopy(self._documents.get(collection, {}).get(name))

    def put(self, collection: str, name: str, document: Document) -> Document:
        """Write a document; returns it."""
        with self._lock:
            self._documents.setdefault(collection, {})[name] = copy.deepcopy(document)
            path = self._path(collection, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".tmp")
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
                json.dump(document, f)
            aside.replace(path)
        return document

    def add(self, collection: str, name: str, document: Document) -> bool:
        """Write a document unless there is one of this name; says whether it did."""
        with self._lock:
            if name in self._documents.get(collection, {}):
                return False
            self.put(collection, name, document)
            return True

    def update(
        self, collection: str, name: str, change: Callable[[Document], Document | None]
    ) -> Document | None:
        """Change a document under the lock; `change` may return None to leave it."""
        with self._lock:
            document = self.get(collection, name)
            if document is None:
                return None
            changed = change(document)
            return document if changed is None else self.put(collection, name, changed)

    def together(self) -> AbstractContextManager[object]:
        """Within it, no one else sees or changes anything: for documents that change as one."""
        return self._lock

    def delete(self, collection: str, name: str) -> bool:
        """Remove a document; says whether it was there."""
        with self._lock:
            if self._documents.get(collection, {}).pop(name, None) is None:
                return False
            self._path(collection, name).unlink(missing_ok=True)
            return True

    def all(self, collection: str, *, prefix: str = "") -> list[Document]:
        """The documents whose name begins with a prefix, in order of creation."""
        with self._lock:
            found = self._documents.get(collection, {})
            return [
                copy.deepcopy(document)
                for name, document in found.items()
                if name.startswith(prefix)
            ]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._documents.clear()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, collection: str, name: str) -> Path:
        return self.folder / collection / f"{quote(name, safe='')}.json"
