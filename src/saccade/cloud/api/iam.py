"""Service accounts, and the policies (who may do what) of every resource that carries one.

A `Guarded` names a resource with a policy; policy objects flow in and out. Changes are made by
reading, editing and writing with the etag, again and again if somebody else wrote meanwhile, so
that no foreign binding is ever lost.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from saccade.cloud.api.transport import (
    AlreadyExists,
    Google,
    NotFound,
    PreconditionFailed,
    Unreachable,
)

SERVICE = "iam"
_VERSION = 3  # policies with conditions are read whole, so that writing keeps the conditions
_TRIES = 8


@dataclass(frozen=True)
class Guarded:
    """A resource with a policy, and how its service speaks about it."""

    service: str
    path: str
    read: Literal["GET", "POST"] = "GET"

    @property
    def bucket(self) -> bool:
        """Whether this is a bucket, whose policy has an address of its own."""
        return self.service == "storage"


def project(google: Google) -> Guarded:
    """Name the project's own policy."""
    return Guarded("cloudresourcemanager", f"/v3/projects/{google.project}", read="POST")


def service_account(google: Google, email: str) -> Guarded:
    """Name the policy of a service account: who may act as it."""
    return Guarded(SERVICE, f"/v1/projects/{google.project}/serviceAccounts/{email}", read="POST")


def secret(google: Google, name: str) -> Guarded:
    """Name the policy of one secret."""
    return Guarded("secretmanager", f"/v1/projects/{google.project}/secrets/{name}")


def repository(google: Google, *, region: str, name: str) -> Guarded:
    """Name the policy of one image repository."""
    path = f"/v1/projects/{google.project}/locations/{region}/repositories/{name}"
    return Guarded("artifactregistry", path)


def bucket(name: str) -> Guarded:
    """Name the policy of one bucket."""
    return Guarded("storage", f"/storage/v1/b/{quote(name, safe='')}/iam")


def get_policy(google: Google, on: Guarded) -> dict[str, Any]:
    """Read a policy with its etag."""
    if on.bucket:
        params = {"optionsRequestedPolicyVersion": _VERSION}
        return google.call("GET", on.service, on.path, params=params)
    path = f"{on.path}:getIamPolicy"
    if on.read == "POST":
        if on.service == SERVICE:  # takes its option as a parameter and no body
            params = {"options.requestedPolicyVersion": _VERSION}
            return google.call("POST", on.service, path, params=params, retry=True)
        body = {"options": {"requestedPolicyVersion": _VERSION}}
        return google.call("POST", on.service, path, body=body, retry=True)
    params = {"options.requestedPolicyVersion": _VERSION}
    return google.call("GET", on.service, path, params=params)


def set_policy(google: Google, on: Guarded, policy: dict[str, Any]) -> dict[str, Any]:
    """Write a policy; its etag makes a concurrent change an AlreadyExists, never a loss."""
    if on.bucket:
        return google.call("PUT", on.service, on.path, body=policy)
    body = {"policy": policy}
    return google.call("POST", on.service, f"{on.path}:setIamPolicy", body=body)


def grant(google: Google, on: Guarded, *, role: str, member: str) -> bool:
    """Give a member a role; returns False if it already had it."""
    return _edit(google, on, lambda policy: add_binding(policy, role=role, member=member))


def revoke(google: Google, on: Guarded, *, role: str, member: str) -> bool:
    """Take a role from a member; returns False if it had none, or the resource is gone."""
    try:
        return _edit(google, on, lambda policy: remove_binding(policy, role=role, member=member))
    except NotFound:
        return False


def has_binding(policy: dict[str, Any], *, role: str, member: str) -> bool:
    """Whether a member holds a role without a condition."""
    return any(
        item.get("role") == role and not item.get("condition") and member in item.get("members", [])
        for item in policy.get("bindings") or []
    )


def add_binding(policy: dict[str, Any], *, role: str, member: str) -> dict[str, Any]:
    """Return the policy with the member in the role; the given one stays as it is."""
    if has_binding(policy, role=role, member=member):
        return policy
    changed = copy.deepcopy(policy)
    bindings = changed.setdefault("bindings", [])
    for item in bindings:
        if item.get("role") == role and not item.get("condition"):
            item.setdefault("members", []).append(member)
            return changed
    bindings.append({"role": role, "members": [member]})
    return changed


def remove_binding(policy: dict[str, Any], *, role: str, member: str) -> dict[str, Any]:
    """Return the policy without the member in the role; empty bindings go, conditions stay."""
    if not has_binding(policy, role=role, member=member):
        return policy
    changed = copy.deepcopy(policy)
    for item in changed["bindings"]:
        if item.get("role") == role and not item.get("condition"):
            item["members"] = [one for one in item.get("members", []) if one != member]
    changed["bindings"] = [item for item in changed["bindings"] if item.get("members")]
    return changed


def account_email(google: Google, account: str) -> str:
    """Return the address of a service account by its short name."""
    return account if "@" in account else f"{account}@{google.project}.iam.gserviceaccount.com"


def get_account(google: Google, account: str) -> dict[str, Any] | None:
    """Read a service account; None if there is none."""
    try:
        return google.call("GET", SERVICE, _account_path(google, account))
    except NotFound:
        return None


def create_account(
    google: Google, account: str, *, display_name: str, description: str = ""
) -> dict[str, Any]:
    """Make a service account (it takes no labels: the description marks whose it is)."""
    body = {
        "accountId": account,
        "serviceAccount": {"displayName": display_name, "description": description},
    }
    path = f"/v1/projects/{google.project}/serviceAccounts"
    return google.call(
        "POST", SERVICE, path, body=body, settle=lambda: get_account(google, account)
    )


def list_accounts(google: Google) -> list[dict[str, Any]]:
    """List the project's service accounts."""
    path = f"/v1/projects/{google.project}/serviceAccounts"
    return list(google.pages(SERVICE, path, items="accounts"))


def delete_account(google: Google, account: str) -> bool:
    """Delete a service account; returns False if there is none."""
    try:
        google.call("DELETE", SERVICE, _account_path(google, account))
    except NotFound:
        return False
    return True


def _account_path(google: Google, account: str) -> str:
    email = account_email(google, account)
    return f"/v1/projects/{google.project}/serviceAccounts/{email}"


def _edit(google: Google, on: Guarded, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    # Writing is not repeated blindly: after a conflict or a lost answer the policy is read again,
    # and either holds the change already or gets it with a fresh etag.
    tries = 0
    while True:
        before = get_policy(google, on)
        after = change(before)
        if after is before:
            return tries > 0
        tries += 1
        try:
            set_policy(google, on, after)
        except (AlreadyExists, PreconditionFailed, Unreachable):
            if tries == _TRIES:
                raise
            time.sleep(google.patience.pause(tries))
            continue
        return True
