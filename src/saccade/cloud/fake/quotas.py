"""Cloud Quotas: quotaInfos with a value per region, and quotaPreferences to ask for more.

Limits flow in from `quota_rules.py`, requests flow out as preferences that are granted, pending or
denied as the scenario says. A granted one raises the limit.
"""

from __future__ import annotations

from typing import Any

from saccade.cloud.fake import quota_rules, wire
from saccade.cloud.fake.compute import EVERYWHERE
from saccade.cloud.fake.http import GoogleError, Request, Response, Router, not_found
from saccade.cloud.fake.wire import BOOL, INT64, STRING, MapOf, Message
from saccade.cloud.fake.world import World, etag_of, new_id

SERVICE = "cloudquotas.googleapis.com"
CONTAINER = wire.enum(
    "google.api.cloudquotas.v1.QuotaInfo.ContainerType",
    "CONTAINER_TYPE_UNSPECIFIED",
    "PROJECT",
    "FOLDER",
    "ORGANIZATION",
)
ORIGIN = wire.enum(
    "google.api.cloudquotas.v1.QuotaConfig.Origin",
    "ORIGIN_UNSPECIFIED",
    "CLOUD_CONSOLE",
    "AUTO_ADJUSTER",
)
INFO = Message({"containerType": CONTAINER})
PREFERENCE = Message(
    {
        "name": STRING,
        "dimensions": MapOf(STRING),
        "quotaConfig": Message(
            {
                "preferredValue": INT64,
                "stateDetail": STRING,
                "grantedValue": INT64,
                "traceId": STRING,
                "annotations": MapOf(STRING),
                "requestOrigin": ORIGIN,
            }
        ),
        "etag": STRING,
        "createTime": STRING,
        "updateTime": STRING,
        "service": STRING,
        "quotaId": STRING,
        "reconciling": BOOL,
        "justification": STRING,
        "contactEmail": STRING,
    }
)


def metrics() -> dict[str, str]:
    """Quota id -> metric, for every GPU, on demand and preemptible, and for CPUs."""
    names = [
        f"custom_model_training_{middle}nvidia_{gpu}_gpus"
        for gpu in quota_rules.GPU_NAMES.values()
        for middle in ("", "preemptible_")
    ]
    names += [f"custom_model_training_{family}_cpus" for family in ("n1", "n2", "e2")]
    return {quota_id(name): name for name in names}


def quota_id(metric: str) -> str:
    """The id of a metric's quota per project and region."""
    return "".join(word.capitalize() for word in metric.split("_")) + "PerProjectPerRegion"


def mount(router: Router, world: World) -> None:
    """Routes of Cloud Quotas."""
    base = "/v1/projects/{project}/locations/global"

    def infos(request: Request, project: str, service: str) -> Response:
        found = [
            _info(world, project, service, quota, metric)
            for quota, metric in (metrics() if service == quota_rules.SERVICE else {}).items()
        ]
        return wire.page(request, found, field="quotaInfos", shape=INFO, default=100)

    def info(request: Request, project: str, service: str, quota: str) -> Response:
        metric = metrics().get(quota)
        if metric is None or service != quota_rules.SERVICE:
            raise not_found("Quota", quota)
        return wire.reply(request, _info(world, project, service, quota, metric), INFO)

    def create(request: Request, project: str) -> Response:
        name = request.first("quotaPreferenceId") or new_id()
        return wire.reply(request, _prefer(world, project, name, request), PREFERENCE)

    def patch(request: Request, project: str, name: str) -> Response:
        known = world.store.get("preferences", f"{project}/{name}")
        if known is None and request.first("allowMissing") != "true":
            raise not_found("QuotaPreference", name)
        return wire.reply(request, _prefer(world, project, name, request, old=known), PREFERENCE)

    def get(request: Request, project: str, name: str) -> Response:
        found = world.store.get("preferences", f"{project}/{name}")
        if found is None:
            raise not_found("QuotaPreference", name)
        return wire.reply(request, found, PREFERENCE)

    def listing(request: Request, project: str) -> Response:
        found = world.store.all("preferences", prefix=f"{project}/")
        return wire.page(request, found, field="quotaPreferences", shape=PREFERENCE)

    quota = f"{base}/services/{{service}}/quotaInfos"
    router.add("GET", quota, infos, service=SERVICE)
    router.add("GET", f"{quota}/{{quota}}", info, service=SERVICE)
    router.add("POST", f"{base}/quotaPreferences", create, service=SERVICE)
    router.add("GET", f"{base}/quotaPreferences", listing, service=SERVICE)
    router.add("GET", f"{base}/quotaPreferences/{{name}}", get, service=SERVICE)
    router.add("PATCH", f"{base}/quotaPreferences/{{name}}", patch, service=SERVICE)


def _info(world: World, project: str, service: str, quota: str, metric: str) -> dict[str, Any]:
    by_value: dict[int, list[str]] = {}
    for region in EVERYWHERE:
        value = quota_rules.limit(world, metric, project=project, region=region)
        by_value.setdefault(value, []).append(region)
    # the value most regions share comes without dimensions, as the default it is
    common = max(by_value, key=lambda value: len(by_value[value]))
    details = [
        {
            "dimensions": {"region": region},
            "details": {"value": str(value)},
            "applicableLocations": [region],
        }
        for value, regions in by_value.items()
        if value != common
        for region in regions
    ]
    details.append(
        {"details": {"value": str(common)}, "applicableLocations": by_value[common]},
    )
    name = f"projects/{world.number(project)}/locations/global/services/{service}/quotaInfos"
    title = metric.replace("_", " ").capitalize()
    return {
        "name": f"{name}/{quota}",
        "quotaId": quota,
        "metric": f"{service}/{metric}",
        "service": service,
        "isPrecise": True,
        "containerType": "PROJECT",
        "dimensions": ["region"],
        "metricDisplayName": title,
        "quotaDisplayName": f"{title} per region",
        "metricUnit": "1",
        "quotaIncreaseEligibility": {"isEligible": True},
        "dimensionsInfos": details,
    }


def _prefer(
    world: World,
    project: str,
    name: str,
    request: Request,
    *,
    old: dict[str, Any] | None = None,
) -> dict[str, Any]:
    body = wire.decode(request.json(), PREFERENCE, at="quota_preference")
    key = f"{project}/{name}"
    if request.method == "POST" and world.store.get("preferences", key) is not None:
        raise GoogleError(409, f"Quota preference {name} already exists.")
    whole = (old or {}) | {field: value for field, value in body.items() if field != "name"}
    metric = metrics().get(whole.get("quotaId", ""))
    wanted = whole.get("quotaConfig", {}).get("preferredValue")
    if metric is None or wanted is None or whole.get("service") != quota_rules.SERVICE:
        raise GoogleError(400, "quota_preference: service, quota_id and preferred_value required.")
    region = whole.get("dimensions", {}).get("region", "")
    have = quota_rules.limit(world, metric, project=project, region=region)
    policy = world.scenario.quota_requests
    if policy == "grant":
        grant = f"{project}/{metric}/{region}"
        world.store.put("grants", grant, {"value": int(wanted)})
        have = int(wanted)
    now = world.stamp()
    config = {
        "preferredValue": wanted,
        "grantedValue": str(have),
        "traceId": new_id(),
        "stateDetail": {"grant": "", "pending": "", "deny": "The request was denied."}[policy],
    }
    number = world.number(project)
    result = whole | {
        "name": f"projects/{number}/locations/global/quotaPreferences/{name}",
        "quotaConfig": config,
        "createTime": whole.get("createTime", now),
        "updateTime": now,
        "reconciling": policy == "pending",
    }
    result["etag"] = etag_of(result)
    return world.store.put("preferences", key, result)
