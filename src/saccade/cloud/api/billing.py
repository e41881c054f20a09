"""Cloud Billing: is the project's billing on, and the public price catalogue.

A project or a catalogue service flows in, yes or no and raw SKU objects flow out. Which SKU is the
price of which machine is decided by `launch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saccade.cloud.api.transport import Google

SERVICE = "cloudbilling"
COMPUTE_ENGINE = "6F81-5844-456A"
VERTEX_AI = "C7E2-9256-1C43"


def billing_enabled(google: Google) -> bool:
    """Whether an open billing account pays for the project."""
    return bool(billing_info(google).get("billingEnabled", False))


def billing_info(google: Google) -> dict[str, Any]:
    """Read which billing account pays for the project."""
    return google.call("GET", SERVICE, f"/v1/projects/{google.project}/billingInfo")


def skus(
    google: Google, service: str = COMPUTE_ENGINE, *, currency: str = "USD"
) -> Iterator[dict[str, Any]]:
    """Yield the SKUs of a catalogue service with their prices, page by page."""
    params = {"pageSize": 5000, "currencyCode": currency}
    yield from google.pages(SERVICE, f"/v1/services/{service}/skus", items="skus", params=params)


def catalogue(google: Google) -> list[dict[str, Any]]:
    """List the services that have prices."""
    return list(google.pages(SERVICE, "/v1/services", items="services", params={"pageSize": 5000}))
