"""What a place to run jobs must do: check, plan, submit, poll, logs, cancel, list.

Plain data flows both ways (`spec.py`), never a back end's own types, so the launch log can hold
all of it and a target can be opened again from nothing but its name and settings. Left out:
deciding what to do about a status (`supervise.py`) and money (`costs.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from saccade.launch.spec import Handle, JobSpec, LogLine, Status

if TYPE_CHECKING:
    from saccade.cloud.findings import Finding

CAPABILITIES = frozenset({"spot", "flex", "multi_gpu", "multi_node", "logs", "remote"})
"""What a target may be able to do; `remote`: it does not share this machine's file system."""


@dataclass(frozen=True)
class Settings:
    """What a target may need to connect; each takes what it needs."""

    env: Mapping[str, str] = field(default_factory=dict)
    """The environment (SACCADE_FAKE_CLOUD, HF_ENDPOINT, SACCADE_HOME, credentials)."""
    project: str | None = None
    region: str | None = None
    """Where to look first; a handle's own region wins."""
    home: Path = Path(".launches")
    """Folder for files of targets without a store of their own (logs of local jobs)."""


class Target(Protocol):
    """A place that runs jobs. Classes also have `open(settings) -> Self`."""

    @property
    def name(self) -> str:
        """The target's name in the table of targets."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can do, out of `CAPABILITIES`."""
        ...

    def check(self, spec: JobSpec) -> list[Finding]:
        """Look for what would stop the job (credentials, image, quota), each with its fix."""
        ...

    def plan(self, spec: JobSpec) -> dict[str, Any]:
        """Return the request that `submit` would send; asks nobody and changes nothing."""
        ...

    def submit(self, spec: JobSpec) -> Handle:
        """Start the job, or return the one that exists for this token and attempt.

        Raises ResourceExhausted when quota refuses it, Unreachable when it is not known whether
        the job was made (the next call finds out).
        """
        ...

    def poll(self, handle: Handle) -> Status:
        """Read the job once; raises Unreachable when no answer was got, which says nothing."""
        ...

    def logs(self, handle: Handle, *, cursor: str | None) -> tuple[list[LogLine], str | None]:
        """Return lines after the cursor (None: from the start) and the cursor behind them."""
        ...

    def cancel(self, handle: Handle) -> None:
        """Ask the job to stop; a job that is over, or gone, is no error."""
        ...

    def list(self) -> list[Handle]:
        """Return every job of ours that the target knows, over or not."""
        ...
