"""Cloud Billing: whether a project has billing, and the catalogue of prices.

Prices flow out as SKUs in the catalogue's shape and wording, with the decoys that mislead readers
of the real one (`sku_list.py`). They are not Google's prices of today.
"""

from __future__ import annotations

from typing import Any

from saccade.cloud.fake import wire
from saccade.cloud.fake.http import GoogleError, Request, Response, Router, json_response
from saccade.cloud.fake.sku_list import catalogue
from saccade.cloud.fake.world import World

SERVICE = "cloudbilling.googleapis.com"
NAMES = {
    "6F81-5844-456A": "Compute Engine",
    "C7E2-9256-1C43": "Vertex AI",
    "95FF-2EF5-5EA1": "Cloud Storage",
    "149C-F9EC-3994": "Artifact Registry",
}
GEO = wire.enum(
    "google.cloud.billing.v1.GeoTaxonomy.Type",
    "TYPE_UNSPECIFIED",
    "GLOBAL",
    "REGIONAL",
    "MULTI_REGIONAL",
)
LEVEL = wire.enum(
    "google.cloud.billing.v1.AggregationInfo.AggregationLevel",
    "AGGREGATION_LEVEL_UNSPECIFIED",
    "ACCOUNT",
    "PROJECT",
)
SKU = wire.Message({"geoTaxonomy": wire.Message({"type": GEO})})


def mount(router: Router, world: World) -> None:
    """Routes of Cloud Billing."""

    def info(request: Request, project: str) -> Response:
        value: dict[str, Any] = {
            "name": f"projects/{project}/billingInfo",
            "projectId": project,
            "billingAccountName": "",
            "billingEnabled": False,
        }
        if world.scenario.billing:
            value |= {
                "billingAccountName": "billingAccounts/000000-FAKE00-000000",
                "billingEnabled": True,
            }
        return json_response(value)

    def services(request: Request) -> Response:
        found = [
            {
                "name": f"services/{number}",
                "serviceId": number,
                "displayName": name,
                "businessEntityName": "businessEntities/GCP",
            }
            for number, name in NAMES.items()
        ]
        return wire.page(request, found, field="services", default=5000, most=5000)

    def skus(request: Request, service: str) -> Response:
        if service not in NAMES:
            raise GoogleError(404, f"Service services/{service} not found.")
        currency = request.first("currencyCode") or "USD"
        if currency != "USD":
            raise GoogleError(400, "The fake cloud has prices in USD only.")
        found = catalogue(service)
        return wire.page(request, found, field="skus", shape=SKU, default=5000, most=5000)

    router.add("GET", "/v1/projects/{project}/billingInfo", info, service=SERVICE)
    router.add("GET", "/v1/services", services)
    router.add("GET", "/v1/services/{service}/skus", skus)
