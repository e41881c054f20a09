"""The way back: delete what the record and the labels say is saccade's, and prove it is gone.

Settings, a connection and the record flow in; a `Plan` of removals flows out, and after it a scan
for everything that still carries saccade's labels, with what it costs. The same planner types and
the same `apply` as in setup are used. Something of the same name that is not labelled is refused;
labelled things that neither the settings nor the record name are only touched when asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from saccade.cloud.api import iam, registry, secrets, storage
from saccade.cloud.api.transport import ApiError, Google, ServiceDisabled, Unreachable
from saccade.cloud.findings import Finding, Level
from saccade.cloud.manifest import Entry
from saccade.cloud.plan import Observed, Plan, Resource, State, Step, look
from saccade.cloud.resource_account import Account
from saccade.cloud.resource_bucket import finals
from saccade.cloud.resource_jobs import running_jobs
from saccade.cloud.resource_registry import Repository
from saccade.cloud.resource_roles import Binding, members_on_project
from saccade.cloud.resource_secrets import Secret
from saccade.cloud.resources import bucket_of, everything, from_entry
from saccade.cloud.roles import Grant, caller_grants
from saccade.cloud.settings import LABELS, MARKER, CloudSettings

ORDER = ("job", "role", "secret", "account", "bucket", "repository")
"""Kinds in the order they go: what costs most first, then rights, then things."""

GIB = 2**30
USD_PER_GIB_MONTH = {"bucket": 0.020, "repository": 0.10}
USD_PER_SECRET_VERSION_MONTH = 0.06
"""Google's list prices for one region in the United States; other regions differ by some 20 %."""

LAG_S = 20.0
"""How long lists may still show what is deleted."""


@dataclass(frozen=True)
class Leftover:
    """Something of saccade's that still exists."""

    resource: Resource
    message: str
    usd_per_month: float | None
    """None: not known, or (a running job) not a monthly cost."""

    def to_json(self) -> dict[str, Any]:
        """Return the leftover as plain values."""
        return {
            "id": self.resource.id, "kind": self.resource.kind, "name": self.resource.name,
            "region": self.resource.region, "message": self.message,
            "usd_per_month": self.usd_per_month,
        }  # fmt: skip


def plan_teardown(
    google: Google, settings: CloudSettings, *, entries: Mapping[str, Entry], all_labelled: bool
) -> Plan:
    """Plan the removal; sends reads only."""
    known = _known(settings, entries)
    if _account_is_foreign(google, settings):
        for id_ in [one.id for one in known.values() if one.kind == "role"]:
            if id_ not in entries:
                known.pop(id_)  # somebody else's account of that name keeps what it was given
    labelled, unreadable = discover(google, settings, entries=entries)
    others = [one for one in labelled if one.id not in known and one.kind not in ("job", "role")]
    for resource in labelled:
        if all_labelled or resource not in others:
            known.setdefault(resource.id, resource)
    steps: list[Step] = []
    refused = list(unreadable)
    notes = [
        f"{one.id}: labelled, but not of these settings; --all removes it too"
        for one in others if not all_labelled
    ]  # fmt: skip
    gone: list[str] = []
    held: dict[str, str] = {}
    for resource in sorted(known.values(), key=_rank):
        words = resource.farewell()
        if words is None:
            if resource.id in entries:
                gone.append(resource.id)
            continue
        observed = look(google, resource)
        if observed.state is State.ABSENT:
            if resource.id in entries:
                gone.append(resource.id)
        elif resource.id in held:
            refused.append(Finding(resource.id, Level.BLOCK, f"waits for {held[resource.id]}"))
        elif observed.state in (State.FOREIGN, State.UNKNOWN):
            held |= dict.fromkeys(resource.needs, resource.id)
            refused.append(_refusal(resource, observed, entries=entries))
        else:
            verb = {"job": "cancel", "role": "revoke"}.get(resource.kind, "delete")
            steps.append(Step(resource, verb, words, observed, removal=True))
    return Plan("teardown", tuple(steps), (), tuple(refused), tuple(notes), gone=tuple(gone))


def held_finals(google: Google, plan: Plan) -> dict[str, list[str]]:
    """Name the finished runs in each bucket that the plan deletes."""
    names = [step.resource.name for step in plan.steps if step.resource.kind == "bucket"]
    found = {name: finals(google, name) for name in names}
    return {name: runs for name, runs in found.items() if runs}


def discover(
    google: Google, settings: CloudSettings, *, entries: Mapping[str, Entry]
) -> tuple[list[Resource], list[Finding]]:
    """List everything that carries saccade's labels; what cannot be listed is a finding."""
    regions = list(dict.fromkeys(
        [*settings.regions, *(entry.region for entry in entries.values() if entry.region)]
    ))  # fmt: skip
    sources: dict[str, Callable[[], Iterable[Resource]]] = {
        "jobs": lambda: running_jobs(google, regions=regions),
        "roles": lambda: _roles(google, settings),
        "secrets": lambda: _secrets(google),
        "accounts": lambda: _accounts(google),
        "buckets": lambda: [
            bucket_of(settings, name=found["name"], region=str(found.get("location", "")).lower())
            for found in storage.list_buckets(google)
            if _labelled(found)
        ],
        "repositories": lambda: _repositories(google, regions),
    }
    found: list[Resource] = []
    unreadable: list[Finding] = []
    for name, source in sources.items():
        try:
            found += source()
        except ServiceDisabled:
            continue  # what belongs to an API that is off cannot run and cannot be listed
        except Unreachable:
            raise
        except ApiError as error:
            message, _, fix = str(error).partition("\n  fix: ")
            unreadable.append(Finding(name, Level.BLOCK, f"cannot be listed: {message}", fix=fix))
    return found, unreadable


def scan(
    google: Google, settings: CloudSettings, *, entries: Mapping[str, Entry]
) -> tuple[list[Leftover], list[Finding]]:
    """Find what is left; lists that lag are asked again for a while."""
    end = time.monotonic() + LAG_S * (0.05 if google.fake else 1.0)
    tries = 0
    while True:
        tries += 1
        found, unreadable = discover(google, settings, entries=entries)
        left = []
        for resource in found:
            observed = look(google, resource)
            if observed.state is not State.ABSENT:
                left.append(Leftover(resource, *_cost(google, resource, observed)))
        if not left or time.monotonic() > end:
            return left, unreadable
        time.sleep(google.patience.pause(tries))


def _known(settings: CloudSettings, entries: Mapping[str, Entry]) -> dict[str, Resource]:
    """Collect what the settings and the record name; your own roles only if saccade gave them."""
    mine = {Binding(grant).id for grant in caller_grants(settings)}
    known: dict[str, Resource] = {}
    for resource in everything(settings):
        if resource.id not in mine or resource.id in entries:
            known[resource.id] = resource
    for id_, entry in entries.items():
        resource = from_entry(entry, settings)
        if resource is not None:
            known.setdefault(id_, resource)
        elif entry.kind in ("apis", "quota"):
            known.setdefault(id_, _Kept(id_, entry))
    return known


@dataclass(frozen=True)
class _Kept:
    """Something recorded that is never removed: an API that is on, a quota request."""

    id: str
    entry: Entry

    group = "kept"
    needs: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.entry.kind

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def region(self) -> str:
        return self.entry.region

    def observe(self, google: Google) -> Observed:
        return Observed(State.CURRENT)

    def intent(self, observed: Observed) -> tuple[str, str]:
        return "keep", self.name

    def make(self, google: Google, observed: Observed) -> None:
        return None

    def farewell(self) -> str | None:
        return None

    def remove(self, google: Google) -> None:
        return None


def _rank(resource: Resource) -> tuple[int, str]:
    place = ORDER.index(resource.kind) if resource.kind in ORDER else len(ORDER)
    return place, resource.id


def _refusal(resource: Resource, observed: Observed, *, entries: Mapping[str, Entry]) -> Finding:
    ours = resource.id in entries and entries[resource.id].certain
    level = Level.BLOCK if ours or observed.state is State.UNKNOWN else Level.WARN
    kept = "left alone: " if observed.state is State.FOREIGN else "cannot be read: "
    return Finding(resource.id, level, kept + observed.message, fix=observed.fix)


def _labelled(found: Mapping[str, Any]) -> bool:
    labels = found.get("labels") or {}
    return all(labels.get(key) == value for key, value in LABELS.items())


def _roles(google: Google, settings: CloudSettings) -> list[Resource]:
    """List roles of our account on the project, also those it had before it was deleted."""
    email = settings.account_email
    if _account_is_foreign(google, settings):
        return []
    return [
        Binding(Grant(role, "project", settings.project, member, why=""))
        for role, member in members_on_project(google)
        if member.partition("?")[0].removeprefix("deleted:") == f"serviceAccount:{email}"
    ]  # fmt: skip


def _account_is_foreign(google: Google, settings: CloudSettings) -> bool:
    return look(google, Account(settings.account_email)).state is State.FOREIGN


def _secrets(google: Google) -> list[Resource]:
    found = secrets.list_by_label(google, labels=dict(LABELS))
    return [Secret(str(one["name"]).rpartition("/")[2]) for one in found]


def _accounts(google: Google) -> list[Resource]:
    return [
        Account(str(one["email"]))
        for one in iam.list_accounts(google) if MARKER in str(one.get("description", ""))
    ]  # fmt: skip


def _repositories(google: Google, regions: Iterable[str]) -> list[Resource]:
    return [
        Repository(str(one["name"]).rpartition("/")[2], region)
        for region in regions
        for one in registry.list_repositories(google, region=region) if _labelled(one)
    ]  # fmt: skip


def _cost(google: Google, resource: Resource, observed: Observed) -> tuple[str, float | None]:
    if resource.kind == "job":
        return f"{observed.message}: billed while it runs", None
    if resource.kind == "secret":
        versions = len(observed.data.get("enabled", ()))
        return f"{versions} version(s)", versions * USD_PER_SECRET_VERSION_MONTH
    if resource.kind in USD_PER_GIB_MONTH:
        size = int(observed.data.get("bytes") or 0)
        if resource.kind == "bucket":
            size = _stored(google, resource.name)
        return f"{size / GIB:.3f} GiB", size / GIB * USD_PER_GIB_MONTH[resource.kind]
    return "free", 0.0


def _stored(google: Google, bucket: str) -> int:
    found = storage.list_objects(google, bucket, versions=True)
    return sum(int(one.get("size") or 0) for one in found)
