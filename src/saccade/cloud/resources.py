"""The desired state: every resource that saccade wants in a project, in the order it is made.

Settings flow in, resources flow out; `from_entry` brings back a resource that only the record
knows, so that a changed setting never leaves something behind. Each kind of resource has a file of
its own (`resource_*.py`); this is the only place that lists them.
"""

from __future__ import annotations

from saccade.cloud.manifest import Entry
from saccade.cloud.plan import Resource
from saccade.cloud.resource_account import Account
from saccade.cloud.resource_bucket import Bucket
from saccade.cloud.resource_quota import QuotaRequest
from saccade.cloud.resource_registry import Repository
from saccade.cloud.resource_roles import Binding, from_name
from saccade.cloud.resource_secrets import Secret
from saccade.cloud.resource_services import Apis
from saccade.cloud.roles import grants
from saccade.cloud.settings import SECRET_VARIABLES, CloudSettings, secret_id


def desired(settings: CloudSettings) -> list[Resource]:
    """List everything a project should have."""
    found: list[Resource] = [
        Apis(),
        Repository(settings.repository, settings.region),
        bucket_of(settings),
        Account(settings.account_email),
        *(
            Secret(secret_id(variable), variable, value)
            for variable, value in settings.secrets.items()
        ),
    ]
    for grant in grants(settings):
        where = settings.region if grant.on == "repository" else ""
        found.append(Binding(grant, where=where))
    found += [QuotaRequest(quota, contact=settings.caller) for quota in settings.quotas]
    return found


def everything(settings: CloudSettings) -> list[Resource]:
    """List what a teardown looks for by name: the desired state, secrets without a value too."""
    absent = [
        Secret(secret_id(variable), variable)
        for variable in SECRET_VARIABLES if variable not in settings.secrets
    ]  # fmt: skip
    return [*desired(settings), *absent]


def from_entry(entry: Entry, settings: CloudSettings) -> Resource | None:
    """Make the resource that an entry of the record is about; None for kinds never removed."""
    if entry.kind == "bucket":
        return bucket_of(settings, name=entry.name, region=entry.region)
    if entry.kind == "repository":
        return Repository(entry.name, entry.region)
    if entry.kind == "account":
        return Account(entry.name)
    if entry.kind == "secret":
        return Secret(entry.name)
    if entry.kind == "role":
        return from_name(entry.name, region=entry.region)
    return None


def bucket_of(settings: CloudSettings, *, name: str = "", region: str = "") -> Bucket:
    """Make the project's bucket, or one of another name with the same rules."""
    return Bucket(
        name or settings.bucket, region or settings.region, expire_days=settings.expire_days,
        soft_delete_days=settings.soft_delete_days,
    )  # fmt: skip
