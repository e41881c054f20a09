"""What the fake cloud will do: how jobs go, which calls fail, what is short or switched off.

A YAML file or keyword arguments flow in, a checked `Scenario` flows out. Everything has a default
under which all calls work and every job runs to its end. Faults can also be set while the server
runs (`faults.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from saccade.config.errors import InputError

Seconds = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    """Base of all parts of a scenario: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Until(Part):
    """When a running phase ends by itself; without any condition when the container does."""

    until_step: int | None = None
    """The container has reported this training step (log line, heartbeat or checkpoint)."""
    seconds: float | None = None
    until_call: str | None = None
    """A request matching this expression came in, e.g. `POST /upload/storage/.*step-20`."""
    until_log: str | None = None
    """A line of the container's log matches this expression."""


class Preempt(Part):
    """The machine is taken away: SIGTERM, `grace` seconds, SIGKILL."""

    grace: Seconds = 5.0


class Fail(Part):
    """The platform ends the job with an error."""

    code: int = 13
    message: str = "Internal error occurred for the current attempt"


class Phase(Part):
    """One phase of a job; exactly one of its fields is set."""

    queued: Seconds | None = None
    pending: Seconds | None = None
    running: Until | None = None
    preempt: Preempt | None = None
    stockout: Literal[True] | None = None
    fail: Fail | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """`preempt`, `stockout`, `running`, and `{running: {}}` or `{running: 5}`."""
        if isinstance(value, str):
            value = {value: None}
        if isinstance(value, dict):
            value = dict(value)
            if "running" in value and isinstance(value["running"], int | float):
                value["running"] = {"seconds": value["running"]}
            for name, empty in (("running", {}), ("preempt", {}), ("stockout", True), ("fail", {})):
                if name in value and value[name] is None:
                    value[name] = empty
            if isinstance(value.get("fail"), str):
                value["fail"] = {"message": value["fail"]}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Phase:
        if sum(value is not None for value in self.__dict__.values()) != 1:
            raise ValueError("a phase is one of queued, pending, running, preempt, stockout, fail")
        return self


class Fault(Part):
    """Calls that go wrong: which, how, how often."""

    match: str
    """Expression searched in `METHOD /path?query`."""
    status: int | Literal["drop", "slow"] = 503
    """An HTTP status, `drop` (the connection breaks) or `slow` (only `seconds` of delay)."""
    times: int | Literal["always"] = 1
    after: int = 0
    """Let this many matching calls pass first."""
    seconds: Seconds = 0.0
    when: Literal["before", "after"] = "before"
    """`after`: the call takes effect and its answer is lost, the hard case for clients."""
    message: str | None = None
    reason: str | None = None


class Stockout(Part):
    """A region without capacity for a machine."""

    region: str = ".*"
    machine: str = ".*"
    strategy: str = ".*"
    pending: Seconds | None = 0.2
    """How long jobs wait before they fail; null: they wait for ever."""


class Scenario(Part):
    """How the fake cloud behaves."""

    jobs: tuple[tuple[Phase, ...], ...] = ()
    """Timelines: the n-th created job takes the n-th, the last is for all later ones."""
    queued_seconds: Seconds = 0.05
    pending_seconds: Seconds = 0.1
    grace_seconds: Seconds = 5.0
    """Between SIGTERM and SIGKILL when a job is cancelled, times out or is preempted by hand."""
    max_containers: int = Field(default=8, ge=1)
    """More jobs than this wait in PENDING, so that a laptop survives."""
    step_pattern: str = r"\bstep[ =:\"]+(\d+)"
    container_env: dict[str, str] = {}
    """Added to every container; tests use it."""
    keep_gpus: bool = False
    """Leave SACCADE_GPUS as the job asked, as on a machine whose driver is broken."""
    faults: tuple[Fault, ...] = ()
    stockouts: tuple[Stockout, ...] = ()
    quotas: dict[str, int | dict[str, int]] = {}
    """Quota metric -> value, or region -> value; what is not named is `default_quota`."""
    default_quota: int = 8
    quota_mode: Literal["auto", "refuse", "hold"] = "auto"
    """Too little quota: `refuse` = 429 at create, `hold` = QUEUED; auto: refuse when it is 0."""
    quota_requests: Literal["grant", "pending", "deny"] = "pending"
    disabled_apis: tuple[str, ...] = ()
    apis: Literal["all", "fresh"] = "all"
    """`fresh`: only what a new project has is enabled; `all`: everything saccade needs."""
    enable_lag: Seconds = 0.0
    """After an API is enabled its calls still answer SERVICE_DISABLED this long."""
    billing: bool = True
    missing_projects: tuple[str, ...] = ()
    denied_permissions: tuple[str, ...] = ()
    list_lag: Seconds = 0.0
    """New things appear in lists only after this long (eventual consistency)."""
    account_lag: Seconds = 0.0
    """A new service account cannot be a policy's member for this long."""
    operation_seconds: Seconds = 0.0
    """How long long-running operations take."""
    build_seconds: Seconds = 0.2
    failing_builds: tuple[str, ...] = ()
    """Builds fail whose image or tag matches one of these expressions."""
    check_images: bool = True
    """Jobs whose Artifact Registry image does not exist fail with ErrImagePull."""
    missing_images: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    """Account ids or e-mails that exist from the start."""


def load(path: Path) -> Scenario:
    """Read a scenario file; raises InputError naming the key that is wrong."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return Scenario.model_validate(value)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such scenario file") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not readable as YAML: {error}") from error
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in entry['loc']) or 'file'}: {entry['msg']}"
            for entry in error.errors()
        ]
        raise InputError(f"{path}: not a scenario: " + "; ".join(lines)) from error
