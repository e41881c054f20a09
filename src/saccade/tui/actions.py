"""What the interface starts: verbs in processes of their own that outlive it.

Words of a verb flow in; a process in its own session flows out, its output in a small file. The
interface can be closed or killed at any moment: what it started goes on, and the launch log or the
run directory says how far it is. Left out: what is asked before (`screens/`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saccade.tui.sources import quiet_env

LOGS_KEPT = 40
TAIL_BYTES = 4000


@dataclass
class Started:
    """A verb that was started from here."""

    title: str
    process: subprocess.Popen[bytes]
    log: Path | None

    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll()

    def tail(self) -> str:
        """The end of what it said."""
        if self.log is None:
            return ""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                return file.read().decode("utf-8", "replace").strip()
        except OSError as error:
            return str(error)


def start(
    words: Sequence[str], *, title: str, env: Mapping[str, str] | None = None
) -> Started:  # fmt: skip
    """Start a verb that goes on without us; raises OSError when no process can be made."""
    log = _log_file()
    target = log.open("ab") if log is not None else None
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "saccade.cli", *words], stdin=subprocess.DEVNULL,
            stdout=target or subprocess.DEVNULL, stderr=target or subprocess.DEVNULL,
            start_new_session=True, close_fds=True, env=quiet_env() | dict(env or {}),
        )  # fmt: skip
    finally:
        if target is not None:
            target.close()
    return Started(title, process, log)


def _log_file() -> Path | None:
    """A new file under saccade's own folder; None when nothing can be written there."""
    from saccade.cloud.settings import home_folder

    folder = home_folder(os.environ) / "tui"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.log"))[:-LOGS_KEPT]:
            old.unlink(missing_ok=True)
        path = folder / f"{time.time_ns()}.log"
        path.touch()
    except OSError:
        return None
    return path
