"""What is on disk about a stage: its record, its lock, the time it took, why it failed.

`runs/PIPELINE/STAGE-KEY/stage.json` is written last and says that the stage is finished and which
artifacts it made; the lock beside it keeps two processes out of one folder, and is inherited by
the programs a stage starts, so it outlives a killed pipeline for as long as they do. Left out:
what is decided from all this (`execute.py`, `show.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from saccade.config.errors import Preempted
from saccade.training.guards import StopRequest
from saccade.training.rundir import read_json, write_atomically

RECORD, SPENT, FAILED = "stage.json", "spent.json", "failed.json"
POLL_SECONDS = 0.1
LOCKS, REPLACED = ".locks", ".replaced"


@dataclass(frozen=True)
class Stored:
    """One output of a finished stage."""

    name: str
    version: int
    digest: str
    bytes: int = 0


@dataclass(frozen=True)
class Record:
    """A finished stage."""

    stage: str
    key: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, Stored]
    metrics: Mapping[str, float]
    seconds: float
    cost_usd: float | None = None
    time: float = 0.0
    v: int = 1

    @classmethod
    def read(cls, folder: Path, *, key: str) -> Record | None:
        """The record of exactly this key; None for anything else."""
        stored = read_json(folder / RECORD)
        if stored is None or stored.get("key") != key or stored.get("v") != 1:
            return None
        outputs = {name: Stored(**one) for name, one in stored.pop("outputs").items()}
        return cls(**stored, outputs=outputs)

    def write(self, folder: Path) -> None:
        """Write it last: from here on the stage is finished."""
        write_atomically(folder / RECORD, json.dumps(asdict(self), indent=2) + "\n")


@dataclass
class Lock:
    """A stage's lock file, held by one process and its children."""

    path: Path
    descriptor: int | None = field(default=None)

    @contextmanager
    def held(self, *, stop: StopRequest, waiting: Callable[[str], None]) -> Iterator[int]:
        """Wait for it and hold it; `waiting` is told once who has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            told = False
            while not taken(descriptor):
                if not told:
                    told = True
                    waiting(os.pread(descriptor, 32, 0).decode(errors="replace").strip())
                if stop:
                    raise Preempted("stopped while waiting for another process")
                time.sleep(POLL_SECONDS)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def is_held(self) -> bool:
        """Whether a process has it now; makes no file."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def lock_of(folder: Path) -> Lock:
    """The lock of a stage's folder; it lies beside, so that the folder can be moved away."""
    return Lock(folder.parent / LOCKS / folder.name)


def spent_seconds(folder: Path) -> float:
    """Seconds of earlier attempts that ended by themselves."""
    return float((read_json(folder / SPENT) or {}).get("seconds", 0.0))


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Add the time spent inside to what earlier attempts spent."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds = spent_seconds(folder) + time.monotonic() - started
        with suppress(OSError):  # a full disk is reported by whatever failed first
            write_atomically(folder / SPENT, json.dumps({"seconds": round(seconds, 3)}) + "\n")


def note_failure(folder: Path, error: BaseException) -> None:
    """Keep the message for `saccade pipeline show`."""
    text = json.dumps({"message": str(error) or error.__class__.__name__}) + "\n"
    with suppress(OSError):
        write_atomically(folder / FAILED, text)


def failure(folder: Path) -> str | None:
    """Why the last attempt failed, if it did."""
    return (read_json(folder / FAILED) or {}).get("message")


def set_aside(folder: Path) -> None:
    """Move a stage's folder out of the way; nothing is deleted."""
    if folder.exists():
        grave = folder.parent / REPLACED
        grave.mkdir(exist_ok=True)
        folder.rename(grave / f"{folder.name}-{time.time_ns()}")


def taken(descriptor: int) -> bool:
    """Take the lock of an open file if nobody has it; says whether it is held now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
