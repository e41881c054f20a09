"""Service Usage: which APIs a project has enabled, enabling and disabling them.

Enable calls flow in as long-running operations; `require` refuses the calls of every API that is
off, in Google's words, and those that need billing where there is none.
"""

from __future__ import annotations

from typing import Any

from saccade.cloud.fake import filters, wire
from saccade.cloud.fake.http import GoogleError, Request, Response, Router
from saccade.cloud.fake.world import World, new_id

SERVICE = "serviceusage.googleapis.com"
TITLES = {
    "aiplatform.googleapis.com": "Vertex AI API",
    "artifactregistry.googleapis.com": "Artifact Registry API",
    "cloudbilling.googleapis.com": "Cloud Billing API",
    "cloudbuild.googleapis.com": "Cloud Build API",
    "cloudquotas.googleapis.com": "Cloud Quotas API",
    "cloudresourcemanager.googleapis.com": "Cloud Resource Manager API",
    "compute.googleapis.com": "Compute Engine API",
    "iam.googleapis.com": "Identity and Access Management (IAM) API",
    "iamcredentials.googleapis.com": "IAM Service Account Credentials API",
    "logging.googleapis.com": "Cloud Logging API",
    "monitoring.googleapis.com": "Cloud Monitoring API",
    "secretmanager.googleapis.com": "Secret Manager API",
    "serviceusage.googleapis.com": "Service Usage API",
    "storage-api.googleapis.com": "Google Cloud Storage JSON API",
    "storage-component.googleapis.com": "Cloud Storage",
    "storage.googleapis.com": "Cloud Storage API",
}
FRESH = frozenset(
    {
        SERVICE,
        "logging.googleapis.com",
        "monitoring.googleapis.com",
        "storage-api.googleapis.com",
        "storage-component.googleapis.com",
        "storage.googleapis.com",
    }
)
"""What a new project has."""
NEED_BILLING = frozenset(
    {
        "aiplatform.googleapis.com",
        "artifactregistry.googleapis.com",
        "cloudbuild.googleapis.com",
        "compute.googleapis.com",
        "secretmanager.googleapis.com",
    }
)
STATE = wire.enum("google.api.serviceusage.v1.State", "STATE_UNSPECIFIED", "DISABLED", "ENABLED")
SHAPE = wire.Message({"state": STATE})


def require(world: World, project: str, service: str) -> None:
    """Refuse a call of an API that is off, or that needs billing where there is none."""
    number = world.number(project)
    consumer = {"service": service, "consumer": f"projects/{number}"}
    title = TITLES.get(service, service)
    if not _usable(world, project, service):
        url = f"https://console.developers.google.com/apis/api/{service}/overview?project={number}"
        raise GoogleError(
            403,
            f"{title} has not been used in project {number} before or it is disabled. Enable it "
            f"by visiting {url} then retry. If you enabled this API recently, wait a few minutes "
            "for the action to propagate to our systems and retry.",
            reason="SERVICE_DISABLED",
            metadata=consumer,
            details=[
                {
                    "@type": "type.googleapis.com/google.rpc.Help",
                    "links": [{"description": "Google developers console", "url": url}],
                }
            ],
        )
    if service in NEED_BILLING and not world.scenario.billing:
        raise GoogleError(
            403,
            "This API method requires billing to be enabled. Please enable billing on project "
            f"#{number} by visiting https://console.developers.google.com/billing/enable?"
            f"project={number} then retry.",
            reason="BILLING_DISABLED",
            metadata=consumer,
        )


def enabled(world: World, project: str, service: str) -> bool:
    """Whether an API is on."""
    known = world.store.get("services", f"{project}/{service}")
    if known is not None:
        return known["state"] == "ENABLED"
    if service in world.scenario.disabled_apis:
        return False
    return service in (FRESH if world.scenario.apis == "fresh" else TITLES)


def mount(router: Router, world: World) -> None:
    """Routes of Service Usage."""
    base = "/v1/projects/{project}/services"

    def get(request: Request, project: str, service: str) -> Response:
        return wire.reply(request, _document(world, project, service), SHAPE)

    def listing(request: Request, project: str) -> Response:
        keep = filters.parse(request.first("filter"))
        names = sorted({*TITLES, *_changed(world, project)})
        found = [_document(world, project, name) for name in names]
        shown = [item for item in found if keep(item)]
        return wire.page(request, shown, field="services", shape=SHAPE, default=50, most=200)

    def batch_get(request: Request, project: str) -> Response:
        names = [name.rpartition("/")[2] for name in request.query.get("names", [])]
        found = [_document(world, project, name) for name in names]
        shape = wire.Message({"services": wire.ListOf(SHAPE)})
        return wire.reply(request, {"services": found}, shape)

    def enable(request: Request, project: str, service: str) -> Response:
        _switch(world, project, [service], state="ENABLED")
        document = _document(world, project, service)
        kind = "type.googleapis.com/google.api.serviceusage.v1.EnableServiceResponse"
        return _operation(world, request, project, [service], {"@type": kind, "service": document})

    def batch_enable(request: Request, project: str) -> Response:
        names = list(request.json().get("serviceIds", []))
        _switch(world, project, names, state="ENABLED")
        found = [_document(world, project, name) for name in names]
        kind = "type.googleapis.com/google.api.serviceusage.v1.BatchEnableServicesResponse"
        return _operation(world, request, project, names, {"@type": kind, "services": found})

    def disable(request: Request, project: str, service: str) -> Response:
        _switch(world, project, [service], state="DISABLED")
        document = _document(world, project, service)
        kind = "type.googleapis.com/google.api.serviceusage.v1.DisableServiceResponse"
        return _operation(world, request, project, [service], {"@type": kind, "service": document})

    router.add("GET", base, listing)
    router.add("GET", f"{base}:batchGet", batch_get)
    router.add("GET", f"{base}/{{service}}", get)
    router.add("POST", f"{base}:batchEnable", batch_enable)
    router.add("POST", f"{base}/{{service}}:enable", enable)
    router.add("POST", f"{base}/{{service}}:disable", disable)


def _usable(world: World, project: str, service: str) -> bool:
    """On, and on for long enough that calls notice."""
    known = world.store.get("services", f"{project}/{service}")
    since = known["since"] if known else 0.0
    return enabled(world, project, service) and world.now() - since >= world.scenario.enable_lag


def _switch(world: World, project: str, names: list[str], *, state: str) -> None:
    for name in names:
        if name not in TITLES and not name.endswith(".googleapis.com"):
            raise GoogleError(
                403,
                f"Not found or permission denied for service(s): {name}.",
                reason="SERVICE_CONFIG_NOT_FOUND_OR_PERMISSION_DENIED",
            )
        if state == "ENABLED" and name in NEED_BILLING and not world.scenario.billing:
            raise GoogleError(
                400,
                f"Billing account for project '{world.number(project)}' is not found. Billing "
                "must be enabled for activation of service(s) "
                f"'{name}' to proceed.",
                code="FAILED_PRECONDITION",
                reason="UREQ_PROJECT_BILLING_NOT_FOUND",
            )
        key = f"{project}/{name}"
        if enabled(world, project, name) != (state == "ENABLED"):
            document = {"name": name, "state": state, "since": world.now()}
            world.store.put("services", key, document)


def _changed(world: World, project: str) -> list[str]:
    return [item["name"] for item in world.store.all("services", prefix=f"{project}/")]


def _document(world: World, project: str, service: str) -> dict[str, Any]:
    number = world.number(project)
    return {
        "name": f"projects/{number}/services/{service}",
        "config": {"name": service, "title": TITLES.get(service, service)},
        "state": "ENABLED" if enabled(world, project, service) else "DISABLED",
        "parent": f"projects/{number}",
    }


def _operation(
    world: World, request: Request, project: str, names: list[str], response: dict[str, Any]
) -> Response:
    number = world.number(project)
    metadata = {
        "@type": "type.googleapis.com/google.api.serviceusage.v1.OperationMetadata",
        "resourceNames": [f"projects/{number}/services/{name}" for name in names],
    }
    name = f"operations/acat.p2-{number}-{new_id()}"
    answer = world.operation(name, response=response, metadata=metadata)
    shape = wire.Message(
        {"response": wire.Message({"service": SHAPE, "services": wire.ListOf(SHAPE)})}
    )
    return wire.reply(request, answer, shape)
