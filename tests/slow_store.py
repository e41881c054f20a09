"""A store that leaves time to be killed in."""

from __future__ import annotations

import time
from pathlib import Path

from saccade.training.store import FolderStore, Stored


class SlowFolder(FolderStore):
    """Every file is there half at first, and whole a little later."""

    stands_still_after: int | None = None
    """After so many files it takes and gives no more: whoever waits for it is surely killed."""

    def send(self, name: str, source: Path, *, replaces: int | None = None) -> Stored:
        """Copy a file in, after a while."""
        self._aside(name).write_bytes(b"half")
        self._rest()
        return super().send(name, source, replaces=replaces)

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file out, half of it at first."""
        content = self.read(name) or b""
        target.write_bytes(content[: len(content) // 2])
        self._rest()
        super().fetch(name, target)

    def _rest(self) -> None:
        left = self.stands_still_after
        time.sleep(0.02 if left is None or left > 0 else 600)
        if left is not None:
            self.stands_still_after = left - 1
