"""IAM policies: bindings of members to roles, with an etag against lost updates.

`mount` adds getIamPolicy, setIamPolicy and testIamPermissions for one kind of resource. A service
account must exist to be a member; when it is deleted its memberships become `deleted:...`, as on
the real platform, so that a later account of the same name gets nothing by accident.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saccade.cloud.fake import wire
from saccade.cloud.fake.http import GoogleError, Request, Response, Router
from saccade.cloud.fake.wire import ANY, BYTES, INT32, STRING, ListOf, Message
from saccade.cloud.fake.world import World, etag_of

POLICIES = "policies"
POLICY = Message(
    {
        "version": INT32,
        "bindings": ListOf(
            Message(
                {
                    "role": STRING,
                    "members": ListOf(STRING),
                    "condition": Message(
                        {
                            "expression": STRING,
                            "title": STRING,
                            "description": STRING,
                            "location": STRING,
                        }
                    ),
                }
            )
        ),
        "auditConfigs": ANY,
        "etag": BYTES,
    }
)
SET_REQUEST = Message({"policy": POLICY, "updateMask": STRING, "resource": STRING})
KINDS = (
    "user:", "serviceAccount:", "group:", "domain:", "deleted:", "principal://", "principalSet://",
    "projectOwner:", "projectEditor:", "projectViewer:",
)  # fmt: skip


def mount(
    router: Router,
    world: World,
    path: str,
    *,
    service: str,
    key: Callable[..., str],
    get_method: str,
    check: Callable[..., Any] | None = None,
) -> None:
    """Add the three policy calls of a resource; APIs differ in the method of getIamPolicy."""

    def get(request: Request, **parts: str) -> Response:
        if check is not None:
            check(**parts)
        return wire.reply(request, read(world, key(**parts)))

    def put(request: Request, **parts: str) -> Response:
        if check is not None:
            check(**parts)
        body = wire.decode(request.json(), SET_REQUEST, at="")
        return wire.reply(request, write(world, key(**parts), body.get("policy", {})))

    def test(request: Request, **parts: str) -> Response:
        wanted = list(request.json().get("permissions", []))
        allowed = [name for name in wanted if name not in world.scenario.denied_permissions]
        return wire.reply(request, {"permissions": allowed} if allowed else {})

    router.add(get_method, f"{path}:getIamPolicy", get, service=service)
    router.add("POST", f"{path}:setIamPolicy", put, service=service)
    router.add("POST", f"{path}:testIamPermissions", test, service=service)


def read(world: World, key: str) -> dict[str, Any]:
    """The policy of a resource; one without bindings has only an etag."""
    found = world.store.get(POLICIES, key)
    return found["policy"] if found else {"version": 1, "etag": etag_of([])}


def write(world: World, key: str, policy: dict[str, Any]) -> dict[str, Any]:
    """Replace a policy, unless it changed since its etag was read."""
    bindings = [binding for binding in policy.get("bindings", []) if binding.get("members")]
    for binding in bindings:
        _check(world, binding)
    known = read(world, key)
    given = policy.get("etag")
    if given and given != known["etag"]:
        raise GoogleError(
            409,
            "There were concurrent policy changes. Please retry the whole read-modify-write "
            "with exponential backoff.",
            code="ABORTED",
        )
    result: dict[str, Any] = {"version": policy.get("version", 1) or 1}
    if bindings:
        result["bindings"] = bindings
    if policy.get("auditConfigs"):
        result["auditConfigs"] = policy["auditConfigs"]
    result["etag"] = etag_of([bindings, known["etag"]])
    if [bindings, result["version"]] == [known.get("bindings", []), known["version"]]:
        result["etag"] = known["etag"]  # nothing changed
    world.store.put(POLICIES, key, {"key": key, "policy": result})
    return result


def forget(world: World, key: str) -> None:
    """A resource is gone, and its policy with it."""
    world.store.delete(POLICIES, key)


def account_deleted(world: World, email: str, unique_id: str) -> None:
    """Mark the memberships of an account that is gone."""
    before, after = f"serviceAccount:{email}", f"deleted:serviceAccount:{email}?uid={unique_id}"
    for item in world.store.all(POLICIES):
        policy = item["policy"]
        hit = False
        for binding in policy.get("bindings", []):
            if before in binding["members"]:
                hit = True
                binding["members"] = [
                    after if member == before else member for member in binding["members"]
                ]
        if hit:
            policy["etag"] = etag_of([policy["bindings"], policy["etag"]])
            world.store.put(POLICIES, item["key"], item)


def _check(world: World, binding: dict[str, Any]) -> None:
    from saccade.cloud.fake.iam import account_usable

    role = binding.get("role", "")
    if not role.startswith(("roles/", "projects/", "organizations/")):
        raise GoogleError(400, f"Role {role} is not supported for this resource.")
    for member in binding["members"]:
        if member not in ("allUsers", "allAuthenticatedUsers") and not member.startswith(KINDS):
            raise GoogleError(400, f"Invalid member: {member!r}: one of user:, serviceAccount:...")
        if member.startswith("serviceAccount:") and not account_usable(world, member[15:]):
            raise GoogleError(400, f"Service account {member[15:]} does not exist.")
