"""Secret Manager: secrets, their versions, and access to the newest.

Payloads are kept in the state folder, readable by its owner only, because a fake must answer with
them; they never reach the log or the record of calls.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from saccade.cloud.fake import filters, policies, wire
from saccade.cloud.fake.http import GoogleError, Request, Response, Router
from saccade.cloud.fake.wire import ANY, BYTES, INT64, STRING, MapOf, Message
from saccade.cloud.fake.world import CREATED, World, check_labels, etag_of, public

SERVICE = "secretmanager.googleapis.com"
SECRETS, VERSIONS = "secrets", "secretVersions"
MAX_BYTES = 65_536
SECRET = Message(
    {
        "name": STRING,
        "replication": Message({"automatic": ANY, "userManaged": ANY}),
        "createTime": STRING,
        "labels": MapOf(STRING),
        "topics": ANY,
        "expireTime": STRING,
        "ttl": wire.DURATION,
        "etag": STRING,
        "rotation": ANY,
        "versionAliases": MapOf(INT64),
        "annotations": MapOf(STRING),
        "versionDestroyTtl": wire.DURATION,
        "customerManagedEncryption": ANY,
        "tags": MapOf(STRING),
    }
)
ADD = Message({"parent": STRING, "payload": Message({"data": BYTES, "dataCrc32c": INT64})})
STATE = wire.enum(
    "google.cloud.secretmanager.v1.SecretVersion.State",
    "STATE_UNSPECIFIED",
    "ENABLED",
    "DISABLED",
    "DESTROYED",
)
VERSION = Message({"state": STATE})


def mount(router: Router, world: World) -> None:
    """Routes of Secret Manager."""
    base = "/v1/projects/{project}/secrets"
    _mount_secrets(router, world, base)
    _mount_versions(router, world, f"{base}/{{name}}")
    _mount_states(router, world, f"{base}/{{name}}")
    policies.mount(
        router,
        world,
        f"{base}/{{name}}",
        service=SERVICE,
        key=lambda project, name: f"secret/{project}/{name}",
        get_method="GET",
        check=lambda project, name: _find(world, project, name),
    )


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, as Google uses it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _mount_secrets(router: Router, world: World, base: str) -> None:
    def create(request: Request, project: str) -> Response:
        name = request.first("secretId") or request.first("secret_id")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", name):
            raise GoogleError(400, f"Invalid secret id: {name!r}")
        body = wire.decode(request.json(), SECRET, at="secret")
        if not body.get("replication"):
            raise GoogleError(400, "Secret.replication: a replication policy is required.")
        check_labels(body.get("labels", {}))
        document = body | {
            "name": f"projects/{world.number(project)}/secrets/{name}",
            "createTime": world.stamp(),
            "_id": name,
            CREATED: world.now(),
        }
        document["etag"] = etag_of(document)
        if not world.store.add(SECRETS, f"{project}/{name}", document):
            raise GoogleError(409, f"Secret [{document['name']}] already exists.")
        return wire.reply(request, public(document))

    def get(request: Request, project: str, name: str) -> Response:
        return wire.reply(request, public(_find(world, project, name)))

    def listing(request: Request, project: str) -> Response:
        keep = filters.parse(request.first("filter"))
        found = world.visible(world.store.all(SECRETS, prefix=f"{project}/"))
        shown = [public(item) for item in found if keep(item)]
        return wire.page(request, shown, field="secrets", default=25_000, most=25_000)

    def patch(request: Request, project: str, name: str) -> Response:
        document = _find(world, project, name)
        body = wire.decode(request.json(), SECRET, at="secret")
        mask = request.first("updateMask") or request.first("update_mask")
        names = {wire.camel(part) for part in mask.split(",") if part} or set(body)
        check_labels(body.get("labels", {}))
        document |= {key: body[key] for key in names if key in body}
        document["etag"] = etag_of(document)
        world.store.put(SECRETS, f"{project}/{name}", document)
        return wire.reply(request, public(document))

    def delete(request: Request, project: str, name: str) -> Response:
        _find(world, project, name)
        world.store.delete(SECRETS, f"{project}/{name}")
        for version in world.store.all(VERSIONS, prefix=f"{project}/{name}/"):
            world.store.delete(VERSIONS, f"{project}/{name}/{version['_n']}")
        policies.forget(world, f"secret/{project}/{name}")
        return wire.reply(request, {})

    router.add("POST", base, create, service=SERVICE)
    router.add("GET", base, listing, service=SERVICE)
    router.add("GET", f"{base}/{{name}}", get, service=SERVICE)
    router.add("PATCH", f"{base}/{{name}}", patch, service=SERVICE)
    router.add("DELETE", f"{base}/{{name}}", delete, service=SERVICE)


def _mount_versions(router: Router, world: World, base: str) -> None:
    def add(request: Request, project: str, name: str) -> Response:
        secret = _find(world, project, name)
        payload = wire.decode(request.json(), ADD, at="").get("payload", {})
        data = base64.b64decode(payload.get("data", ""))
        if len(data) > MAX_BYTES:
            raise GoogleError(400, "The secret payload is larger than 64 KiB.")
        given = payload.get("dataCrc32c")
        if given is not None and int(given) != crc32c(data):
            raise GoogleError(400, "The data_crc32c does not match the payload.")
        versions = world.store.all(VERSIONS, prefix=f"{project}/{name}/")
        number = max((version["_n"] for version in versions), default=0) + 1
        document = {
            "name": f"{secret['name']}/versions/{number}",
            "createTime": world.stamp(),
            "state": "ENABLED",
            "etag": etag_of([secret["name"], number]),
            "clientSpecifiedPayloadChecksum": given is not None,
            "_n": number,
            "_data": base64.b64encode(data).decode(),
        }
        world.store.put(VERSIONS, f"{project}/{name}/{number}", document)
        return wire.reply(request, public(document), VERSION)

    def access(request: Request, project: str, name: str, version: str) -> Response:
        found = _version(world, project, name, version)
        if found["state"] != "ENABLED":
            raise GoogleError(
                400,
                f"Secret Version [{found['name']}] is in {found['state']} state.",
                code="FAILED_PRECONDITION",
            )
        checksum = str(crc32c(base64.b64decode(found["_data"])))
        payload = {"data": found["_data"], "dataCrc32c": checksum}
        return wire.reply(request, {"name": found["name"], "payload": payload})

    router.add("POST", f"{base}:addVersion", add, service=SERVICE)
    router.add("GET", f"{base}/versions/{{version}}:access", access, service=SERVICE)


def _mount_states(router: Router, world: World, base: str) -> None:
    def get(request: Request, project: str, name: str, version: str) -> Response:
        return wire.reply(request, public(_version(world, project, name, version)), VERSION)

    def listing(request: Request, project: str, name: str) -> Response:
        _find(world, project, name)
        keep = filters.parse(request.first("filter"))
        found = world.store.all(VERSIONS, prefix=f"{project}/{name}/")
        shown = [public(item) for item in reversed(found) if keep(item)]
        return wire.page(request, shown, field="versions", shape=VERSION)

    def switch(state: str) -> Any:
        def change(request: Request, project: str, name: str, version: str) -> Response:
            found = _version(world, project, name, version)
            found["state"] = state
            if state == "DESTROYED":
                found |= {"_data": "", "destroyTime": world.stamp()}
            world.store.put(VERSIONS, f"{project}/{name}/{found['_n']}", found)
            return wire.reply(request, public(found), VERSION)

        return change

    router.add("GET", f"{base}/versions", listing, service=SERVICE)
    router.add("GET", f"{base}/versions/{{version}}", get, service=SERVICE)
    for verb, state in (("enable", "ENABLED"), ("disable", "DISABLED"), ("destroy", "DESTROYED")):
        router.add("POST", f"{base}/versions/{{version}}:{verb}", switch(state), service=SERVICE)


def _find(world: World, project: str, name: str) -> dict[str, Any]:
    found = world.store.get(SECRETS, f"{project}/{name}")
    if found is None:
        where = f"projects/{world.number(project)}/secrets/{name}"
        raise GoogleError(404, f"Secret [{where}] not found.")
    return found


def _version(world: World, project: str, name: str, version: str) -> dict[str, Any]:
    secret = _find(world, project, name)
    versions = world.store.all(VERSIONS, prefix=f"{project}/{name}/")
    if version == "latest" and versions:
        return max(versions, key=lambda item: item["_n"])
    for found in versions:
        if str(found["_n"]) == version:
            return found
    raise GoogleError(
        404, f"Secret Version [{secret['name']}/versions/{version}] not found or has no versions."
    )
