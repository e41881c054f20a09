"""The planner: what is there, what should be there, and the steps from one to the other.

Resources (desired state) and a connection flow in, a `Plan` flows out; planning only reads. Every
resource answers three questions: what is seen, how it is brought to the desired state, how it is
removed. A dry run is this same plan, its calls found by rehearsing the steps (`rehearsal.py`). Left
out: doing it (`apply.py`) and what a teardown covers (`teardown.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from saccade.cloud.api.transport import (
    ApiError,
    Google,
    ServiceDisabled,
    Unauthenticated,
    Unreachable,
)
from saccade.cloud.findings import Finding, Level
from saccade.cloud.manifest import INTENT, Entry
from saccade.config.errors import InputError

GROUPS = ("apis", "registry", "bucket", "account", "secrets", "roles", "quota")
"""What `--only` takes, in the order things are made."""


class State(StrEnum):
    """What was seen of a resource."""

    ABSENT = "absent"
    CURRENT = "current"
    DRIFTED = "drifted"
    PENDING = "pending"
    """Asked for, and not in our hands any more (a quota request)."""
    FOREIGN = "foreign"
    """The name is taken by something saccade did not make; never changed, never deleted."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Observed:
    """One look at one resource."""

    state: State
    message: str = ""
    differences: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    fix: str = ""
    level: Level | None = None
    """How much it matters, where the state alone does not say."""


class Resource(Protocol):
    """One thing in the cloud that saccade may need."""

    @property
    def id(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def region(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]:
        """Return the ids of resources that must exist first."""
        ...

    def observe(self, google: Google) -> Observed:
        """Look at it; raises what the API raises."""
        ...

    def intent(self, observed: Observed) -> tuple[str, str]:
        """Say what `make` would do: one verb, one sentence."""
        ...

    def make(self, google: Google, observed: Observed) -> None:
        """Bring it to the desired state; doing it twice is harmless."""
        ...

    def farewell(self) -> str | None:
        """Say what `remove` would do; None for what is left as it is."""
        ...

    def remove(self, google: Google) -> None:
        """Delete it; one that is gone is no error."""
        ...


@dataclass(frozen=True)
class Step:
    """One planned change of one resource."""

    resource: Resource
    verb: str
    what: str
    observed: Observed
    removal: bool = False

    @property
    def id(self) -> str:
        """Return the resource's id."""
        return self.resource.id

    def take(self, google: Google, observed: Observed) -> None:
        """Do it, from what was seen last."""
        if self.removal:
            self.resource.remove(google)
        else:
            self.resource.make(google, observed)

    def to_json(self) -> dict[str, Any]:
        """Return the step as plain values."""
        return {
            "id": self.id, "group": self.resource.group, "verb": self.verb, "what": self.what,
            "needs": list(self.resource.needs),
        }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Everything that would be done, in order; `refused` says what stands in the way."""

    purpose: str
    steps: tuple[Step, ...]
    unchanged: tuple[Resource, ...] = ()
    refused: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    settled: tuple[str, ...] = ()
    """Recorded as intended and seen to exist: only the record is behind."""
    gone: tuple[str, ...] = ()
    """Recorded and seen to be absent (teardown): only the record is behind."""

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {
            "purpose": self.purpose,
            "steps": [step.to_json() for step in self.steps],
            "unchanged": [resource.id for resource in self.unchanged],
            "refused": [finding.to_json() for finding in self.refused],
            "notes": list(self.notes),
        }


def plan_setup(
    google: Google, resources: Sequence[Resource], *, entries: Mapping[str, Entry]
) -> Plan:
    """Compare every resource with what is there; sends reads only."""
    steps: list[Step] = []
    unchanged: list[Resource] = []
    refused: list[Finding] = []
    notes: list[str] = []
    settled: list[str] = []
    stopped: set[str] = set()
    for resource in resources:
        waits = next((need for need in resource.needs if need in stopped), None)
        observed = look(google, resource)
        if waits is not None:
            stopped.add(resource.id)
            refused.append(
                Finding(resource.id, Level.BLOCK, f"waits for {waits}, which is refused")
            )
        elif observed.state in (State.FOREIGN, State.UNKNOWN):
            finding = finding_of(resource, observed)
            if finding.level is Level.BLOCK:
                stopped.add(resource.id)
                refused.append(finding)
            else:
                notes.append(f"{resource.id}: {observed.message}")
        elif observed.state in (State.CURRENT, State.PENDING):
            unchanged.append(resource)
            if observed.message and observed.state is State.PENDING:
                notes.append(f"{resource.id}: {observed.message}")
            if resource.id in entries and entries[resource.id].state == INTENT:
                settled.append(resource.id)
        else:
            verb, what = resource.intent(observed)
            steps.append(Step(resource, verb, what, observed))
    return Plan(
        "setup", tuple(steps), tuple(unchanged), tuple(refused), tuple(notes), tuple(settled)
    )


def look(google: Google, resource: Resource) -> Observed:
    """Observe a resource; refusals become `unknown`, a switched-off API means absent."""
    try:
        return resource.observe(google)
    except ServiceDisabled as error:
        return Observed(State.ABSENT, str(error))
    except (Unauthenticated, Unreachable):
        raise
    except ApiError as error:
        message, _, fix = str(error).partition("\n  fix: ")
        return Observed(State.UNKNOWN, message, fix=fix, level=Level.BLOCK)


def finding_of(resource: Resource, observed: Observed) -> Finding:
    """Say what was seen of a resource as a finding; what a job needs and lacks blocks."""
    levels = {
        State.CURRENT: Level.OK,
        State.PENDING: Level.WARN,
        State.DRIFTED: Level.WARN,
        State.ABSENT: Level.BLOCK,
        State.FOREIGN: Level.BLOCK,
        State.UNKNOWN: Level.UNKNOWN,
    }
    words = "; ".join(observed.differences) or observed.message or str(observed.state)
    mend = observed.state in (State.ABSENT, State.DRIFTED)
    fix = observed.fix or (f"saccade cloud setup --only {resource.group}" if mend else "")
    level = observed.level or levels[observed.state]
    return Finding(
        resource.id, level, words, fix=fix, have=observed.data.get("have"),
        need=observed.data.get("need"),
    )  # fmt: skip


def chosen(resources: Iterable[Resource], *, only: Sequence[str]) -> list[Resource]:
    """Keep the groups named by `--only`; raises InputError for a name that is no group."""
    unknown = [name for name in only if name not in GROUPS]
    if unknown:
        raise InputError(f"--only {unknown[0]}: expected some of {', '.join(GROUPS)}")
    return [resource for resource in resources if not only or resource.group in only]
