"""IAM and Resource Manager: service accounts, their policies, the project and its policy.

Accounts are documents; policies are in `policies.py`. Keys cannot be made: saccade downloads none.
"""

from __future__ import annotations

import re
from typing import Any

from saccade.cloud.fake import policies, wire
from saccade.cloud.fake.http import GoogleError, Request, Response, Router
from saccade.cloud.fake.wire import BOOL, BYTES, STRING, Message
from saccade.cloud.fake.world import CREATED, World, etag_of, new_id, project_number, public

SERVICE = "iam.googleapis.com"
RESOURCE_MANAGER = "cloudresourcemanager.googleapis.com"
ACCOUNTS = "serviceAccounts"
ACCOUNT = Message(
    {
        "name": STRING,
        "projectId": STRING,
        "uniqueId": STRING,
        "email": STRING,
        "displayName": STRING,
        "etag": BYTES,
        "description": STRING,
        "oauth2ClientId": STRING,
        "disabled": BOOL,
    }
)
CREATE = Message({"accountId": STRING, "serviceAccount": ACCOUNT, "name": STRING})
PATCH = Message({"serviceAccount": ACCOUNT, "updateMask": STRING})
PROJECT_STATE = wire.enum(
    "google.cloud.resourcemanager.v3.Project.State",
    "STATE_UNSPECIFIED",
    "ACTIVE",
    "DELETE_REQUESTED",
)
PROJECT = Message({"state": PROJECT_STATE})


def account_exists(world: World, project: str, email: str) -> bool:
    """Whether a project has an account."""
    return world.store.get(ACCOUNTS, f"{project}/{email}") is not None or _preset(
        world, project, email
    )


def account_usable(world: World, email: str) -> bool:
    """Whether an account can be a policy's member; Google's own agents always can."""
    found = re.fullmatch(r"[^@]+@([^.]+)\.iam\.gserviceaccount\.com", email)
    if found is None or found.group(1).startswith("gcp-sa-"):
        return True
    project = found.group(1)
    account = world.store.get(ACCOUNTS, f"{project}/{email}")
    if account is None:
        # accounts of projects this server has never heard of are somebody else's
        known = world.store.get("projects", project) is not None
        return not known or _preset(world, project, email)
    return world.now() - account[CREATED] >= world.scenario.account_lag


def mount(router: Router, world: World) -> None:
    """Routes of IAM and Resource Manager."""
    base = "/v1/projects/{project}/serviceAccounts"
    _mount_accounts(router, world, base)
    policies.mount(
        router,
        world,
        f"{base}/{{email}}",
        service=SERVICE,
        key=lambda project, email: f"account/{email}",
        get_method="POST",
        check=lambda project, email: _find(world, project, email),
    )
    for version in ("v3", "v1"):
        policies.mount(
            router,
            world,
            f"/{version}/projects/{{project}}",
            service=RESOURCE_MANAGER,
            key=lambda project: f"project/{project}",
            get_method="POST",
        )

    def project_v3(request: Request, project: str) -> Response:
        value = {
            "name": f"projects/{world.number(project)}",
            "projectId": project,
            "state": "ACTIVE",
            "displayName": project,
            "createTime": "2026-01-01T00:00:00Z",
            "etag": etag_of(project),
        }
        return wire.reply(request, value, PROJECT)

    def project_v1(request: Request, project: str) -> Response:
        number = world.number(project)
        value = {"projectNumber": number, "projectId": project, "lifecycleState": "ACTIVE"}
        return wire.reply(request, value | {"name": project})

    router.add("GET", "/v3/projects/{project}", project_v3, service=RESOURCE_MANAGER)
    router.add("GET", "/v1/projects/{project}", project_v1, service=RESOURCE_MANAGER)


def _mount_accounts(router: Router, world: World, base: str) -> None:
    def create(request: Request, project: str) -> Response:
        body = wire.decode(request.json(), CREATE, at="")
        account_id = body.get("accountId", "")
        if not re.fullmatch(r"[a-z]([-a-z0-9]{4,28}[a-z0-9])", account_id):
            raise GoogleError(
                400, f"Invalid service account ID {account_id!r}: 6 to 30 lower-case characters."
            )
        email = f"{account_id}@{project}.iam.gserviceaccount.com"
        given = body.get("serviceAccount", {})
        document = {
            "name": f"projects/{project}/serviceAccounts/{email}",
            "projectId": project,
            "uniqueId": "1" + new_id(),
            "email": email,
            "oauth2ClientId": "1" + new_id(),
            **{key: given[key] for key in ("displayName", "description") if key in given},
            CREATED: world.now(),
        }
        document["etag"] = etag_of(document)
        if _preset(world, project, email) or not world.store.add(
            ACCOUNTS, f"{project}/{email}", document
        ):
            raise GoogleError(
                409, f"Service account {account_id} already exists within project {project}."
            )
        return wire.reply(request, public(document))

    def get(request: Request, project: str, email: str) -> Response:
        return wire.reply(request, public(_find(world, project, email)))

    def listing(request: Request, project: str) -> Response:
        found = world.visible(world.store.all(ACCOUNTS, prefix=f"{project}/"))
        return wire.page(request, [public(item) for item in found], field="accounts", default=20)

    def patch(request: Request, project: str, email: str) -> Response:
        document = _find(world, project, email)
        body = wire.decode(request.json(), PATCH, at="").get("serviceAccount", {})
        document |= {key: body[key] for key in ("displayName", "description") if key in body}
        document["etag"] = etag_of(document)
        world.store.put(ACCOUNTS, f"{project}/{document['email']}", document)
        return wire.reply(request, public(document))

    def delete(request: Request, project: str, email: str) -> Response:
        document = _find(world, project, email)
        world.store.delete(ACCOUNTS, f"{project}/{document['email']}")
        policies.forget(world, f"account/{document['email']}")
        policies.account_deleted(world, document["email"], document["uniqueId"])
        return wire.reply(request, {})

    router.add("POST", base, create, service=SERVICE)
    router.add("GET", base, listing, service=SERVICE)
    router.add("GET", f"{base}/{{email}}", get, service=SERVICE)
    router.add("PATCH", f"{base}/{{email}}", patch, service=SERVICE)
    router.add("DELETE", f"{base}/{{email}}", delete, service=SERVICE)


def _preset(world: World, project: str, email: str) -> bool:
    """Accounts that the scenario says exist."""
    names = world.scenario.service_accounts
    return email in names or email.partition("@")[0] in names


def _find(world: World, project: str, email: str) -> dict[str, Any]:
    if project == "-" or email.isdigit():  # by unique id, or in whatever project
        for item in world.store.all(ACCOUNTS):
            if email in (item["uniqueId"], item["email"]):
                return item
    found = world.store.get(ACCOUNTS, f"{project}/{email}")
    if found is not None:
        return found
    if _preset(world, project, email):
        return {
            "name": f"projects/{project}/serviceAccounts/{email}",
            "projectId": project,
            "uniqueId": project_number(email),
            "email": email,
        }
    raise GoogleError(404, f"Unknown service account: {email}")
