"""Cloud Quotas: what limits the project has per region, and asking for more.

Quota objects flow in from Google; a small `Quota` flows out that answers "how much in this
region?" with a number, or None when Google does not say: unknown is never zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from saccade.cloud.api.transport import Google

SERVICE = "cloudquotas"
VERTEX = "aiplatform.googleapis.com"
COMPUTE = "compute.googleapis.com"
UNLIMITED = -1


@dataclass(frozen=True)
class Quota:
    """One limit of a service with its values by region; the key "" is the value elsewhere."""

    quota_id: str
    metric: str
    service: str
    title: str
    values: dict[str, int] = field(default_factory=dict)

    def limit(self, region: str) -> int | None:
        """Return the limit in a region; -1 = unlimited, None = not stated."""
        return self.values.get(region, self.values.get(""))


def quota_infos(google: Google, *, service: str = VERTEX) -> list[dict[str, Any]]:
    """List the quota objects of a service as Google gives them."""
    path = f"{_root(google)}/services/{service}/quotaInfos"
    params = {"pageSize": 500}
    return list(google.pages(SERVICE, path, items="quotaInfos", params=params))


def quotas(google: Google, *, service: str = VERTEX) -> dict[str, Quota]:
    """Read the limits of a service by their metric's last part.

    The keys look like `custom_model_training_preemptible_nvidia_a100_gpus`. Metrics that are
    split by more than the region (by model, by user) keep only their region-wide values.
    """
    found: dict[str, Quota] = {}
    for info in quota_infos(google, service=service):
        quota = read_quota(info)
        key = quota.metric.rsplit("/", 1)[-1]
        if key not in found or len(quota.values) > len(found[key].values):
            found[key] = quota
    return found


def read_quota(info: dict[str, Any]) -> Quota:
    """Reduce one quota object to its values by region."""
    values: dict[str, int] = {}
    for row in info.get("dimensionsInfos") or []:
        value = (row.get("details") or {}).get("value")
        dimensions = dict(row.get("dimensions") or {})
        region = dimensions.pop("region", None)
        if value is None or dimensions:
            continue
        if region is not None:
            values[region] = int(value)
            continue
        # One row may speak for many places; a row of its own is more specific and wins.
        for place in row.get("applicableLocations") or [""]:
            key = "" if place == "global" else str(place)
            values.setdefault(key, int(value))
    return Quota(
        quota_id=str(info.get("quotaId", "")),
        metric=str(info.get("metric", "")),
        service=str(info.get("service", "")),
        title=str(info.get("quotaDisplayName") or info.get("metricDisplayName") or ""),
        values=values,
    )


def request_quota(
    google: Google, *, quota: Quota, region: str, value: int, reason: str, email: str | None = None
) -> dict[str, Any]:
    """Ask Google for a higher limit; asking again for the same changes the one request."""
    name = preference_id(quota, region=region)
    body: dict[str, Any] = {
        "service": quota.service,
        "quotaId": quota.quota_id,
        "dimensions": {"region": region},
        "quotaConfig": {"preferredValue": str(value)},
        "justification": reason,
    }
    if email:
        body["contactEmail"] = email
    path = f"{_root(google)}/quotaPreferences/{name}"
    return google.call("PATCH", SERVICE, path, body=body, params={"allowMissing": "true"})


def requests_made(google: Google) -> list[dict[str, Any]]:
    """List the project's requests for higher limits with what was granted."""
    path = f"{_root(google)}/quotaPreferences"
    return list(google.pages(SERVICE, path, items="quotaPreferences", params={"pageSize": 100}))


def preference_id(quota: Quota, *, region: str) -> str:
    """Name the request for a limit in a region: the same limit gives the same name."""
    text = f"saccade-{quota.quota_id}-{region}".lower()
    return re.sub(r"[^a-z0-9-]+", "-", text)


def _root(google: Google) -> str:
    return f"/v1/projects/{google.project}/locations/global"
