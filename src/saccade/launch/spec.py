"""What is submitted and what comes back: the data between the launch flow and its targets.

A `JobSpec` says everything a back end needs for one attempt of one launch, without any back end's
own types; a `Handle` names the job a target made of it; a `Status` is one reading of that job.
All are JSON in and out, for the launch log. No secret is ever among them: `secrets` holds *names*
in the secret manager. Left out: how a target renders a spec into its own request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from saccade.launch.machines import Strategy
from saccade.launch.states import State

APP = "saccade"
"""Value of the label `app` on everything Saccade creates."""
LABEL_TEXT = 63
"""Longest value of a Google Cloud label."""


@dataclass(frozen=True)
class JobSpec:
    """One attempt of one launch."""

    run: str
    """Name of the run directory, and of the run in the store."""
    token: str
    """What makes a launch one launch: same token, same job."""
    attempt: int
    """1 for the first job, counted up at every resubmission."""
    recipe: str
    machine: str
    """Name in the table of machines; `local` for this one."""
    replicas: int
    strategy: Strategy
    region: str
    """Where it runs; `local` for this machine."""
    image: str | None
    """Container image by digest; None where the target runs without one."""
    code: str
    """Code archive (gs:// or a local path); empty when the image has the code."""
    config: str
    """The resolved configuration file (gs:// or a local path)."""
    store: str
    """Root of the checkpoint store (gs://BUCKET or a folder)."""
    env: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    """Place `inputs/HASH[/FILE]` in the store and in the job -> where it is on this machine."""
    secrets: dict[str, str] = field(default_factory=dict)
    """Variable -> name in Secret Manager; never a value."""
    labels: dict[str, str] = field(default_factory=dict)
    timeout_s: int = 24 * 3600
    """Longest the job may run; also the hard limit on its cost."""
    max_wait_s: int = 3600
    """Longest it may wait for a machine."""
    disk_gb: int = 100
    service_account: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"strategy": str(self.strategy)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> JobSpec:
        """Read what `to_json` wrote; unknown names of a later version are left out."""
        known = {one.name for one in fields(cls)}
        kept: dict[str, Any] = {name: value for name, value in values.items() if name in known}
        kept["strategy"] = Strategy(values["strategy"])
        return cls(**kept)

    def at(self, *, attempt: int, **changes: Any) -> JobSpec:
        """Return the spec of another attempt, its labels along with it."""
        made = replace(self, attempt=attempt, **changes)
        return replace(made, labels=made.labels | labels(made))


@dataclass(frozen=True)
class Handle:
    """A job that a target knows."""

    target: str
    id: str
    region: str
    url: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Handle:
        """Read what `to_json` wrote."""
        return cls(values["target"], values["id"], values["region"], values.get("url"))


@dataclass(frozen=True)
class Status:
    """One reading of a job."""

    state: State
    detail: str = ""
    """The back end's own words (state name, error message)."""
    error_code: int | None = None
    """The container's exit code or the back end's error code, when it ended with one."""
    raw: dict[str, Any] = field(default_factory=dict)
    started_at: float | None = None
    """When the machine began to be held (seconds since 1970), as far as the back end says."""
    ended_at: float | None = None


@dataclass(frozen=True)
class LogLine:
    """One line a job wrote."""

    time: float
    text: str
    severity: str = "INFO"
    replica: str = ""


def labels(spec: JobSpec) -> dict[str, str]:
    """The labels by which a job is found again: app, run, token and attempt."""
    return {
        "app": APP,
        "run": label_text(spec.run),
        "token": label_text(spec.token),
        "attempt": str(spec.attempt),
    }


def label_text(text: str) -> str:
    """Write text as Google Cloud allows label values: lower case, digits, `_` and `-`."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:LABEL_TEXT]
