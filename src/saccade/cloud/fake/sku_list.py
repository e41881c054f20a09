"""The SKUs of the fake billing catalogue: parts of GPU machines, management fees, and decoys.

Unit prices per region flow out in the shape of the real catalogue. Beside every right SKU stand
the ones that mislead: commitments, calendar mode, defined duration, sole tenancy, custom machines,
and the 40 GB and 80 GB models of one GPU. Figures have the order of the real ones and no more.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

COMPUTE, VERTEX, STORAGE = "6F81-5844-456A", "C7E2-9256-1C43", "95FF-2EF5-5EA1"
PLACES = {
    "us-central1": ("Americas", 1.0),
    "us-east1": ("South Carolina", 1.0),
    "us-east4": ("Virginia", 1.08),
    "us-east5": ("Columbus", 0.98),
    "us-west1": ("Oregon", 1.0),
    "us-west4": ("Las Vegas", 1.05),
    "europe-west4": ("Netherlands", 1.04),
    "asia-northeast1": ("Japan", 1.17),
    "asia-southeast1": ("Singapore", 1.2),
}
"""Region -> place as descriptions name it, and how much dearer than us-central1."""
# family: US dollars per vCPU and per GiB and hour, on demand
FAMILIES = {
    "A2": (0.031611, 0.004237),
    "A3": (0.029400, 0.002560),
    "G2": (0.024988, 0.002927),
    "N1 Predefined": (0.031611, 0.004237),
    "E2": (0.021811, 0.002923),
}
GPUS = {
    "Nvidia Tesla T4 GPU": 0.35,
    "Nvidia L4 GPU": 0.560004,
    "Nvidia Tesla A100 GPU": 2.933908,
    "Nvidia Tesla A100 80GB GPU": 3.927020,
    "Nvidia H100 80GB GPU": 9.796553,
}
FEE_NAMES = {
    "Nvidia Tesla T4 GPU": "NVIDIA T4",
    "Nvidia L4 GPU": "NVIDIA L4",
    "Nvidia Tesla A100 GPU": "NVIDIA A100",
    "Nvidia Tesla A100 80GB GPU": "NVIDIA A100 80GB",
    "Nvidia H100 80GB GPU": "NVIDIA H100 80GB",
}
SPOT, DEFINED, FEE = 0.53, 0.5, 0.15


@cache
def catalogue(service: str) -> tuple[dict[str, Any], ...]:
    """All SKUs of a service, in no helpful order."""
    found: list[dict[str, Any]] = []
    for region in PLACES:
        if service == COMPUTE:
            found += _cores(region) + _gpus(region) + _disks(region)
        elif service == VERTEX:
            found += _fees(region)
        elif service == STORAGE:
            place = PLACES[region][0]
            text = f"Standard Storage {place}"
            found.append(_sku(service, text, region, 0.02, unit="GiBy.mo"))
    return tuple(sorted(found, key=lambda sku: sku["skuId"]))


def _cores(region: str) -> list[dict[str, Any]]:
    place, factor = PLACES[region]
    found: list[dict[str, Any]] = []
    dws = "DWS Defined Duration"
    for family, (core, ram) in FAMILIES.items():
        for part, price, unit in (("Core", core, "h"), ("Ram", ram, "GiBy.h")):
            text, usd = f"{family} Instance {part} running in {place}", price * factor
            found += [
                _sku(COMPUTE, text, region, usd, unit=unit),
                _sku(COMPUTE, f"Spot Preemptible {text}", region, usd * SPOT, "Preemptible", unit),
                _sku(COMPUTE, f"Commitment v1: {family} {part} in {place} for 1 Year", region,
                     usd * 0.63, "Commit1Yr", unit),
                _sku(COMPUTE, f"{family} Sole Tenancy Instance {part} running in {place}", region,
                     usd * 1.1, unit=unit),
                _sku(COMPUTE, f"{family} Custom Instance {part} running in {place}", region,
                     usd * 1.05, unit=unit),
                _sku(COMPUTE, f"{dws} {family} {part} in {place}", region, usd * DEFINED,
                     unit=unit),
                _sku(COMPUTE, f"DWS Calendar Mode {family} {part} in {place}", region, usd * 0.7,
                     unit=unit),
                _sku(COMPUTE, f"Reserved {text}", region, usd, unit=unit),
            ]  # fmt: skip
    return found


def _gpus(region: str) -> list[dict[str, Any]]:
    place, factor = PLACES[region]
    found: list[dict[str, Any]] = []
    for gpu, price in GPUS.items():
        usd = price * factor
        short = gpu.removesuffix(" GPU")
        found += [
            _sku(COMPUTE, f"{gpu} running in {place}", region, usd, group="GPU"),
            _sku(COMPUTE, f"{gpu} attached to Spot Preemptible VMs running in {place}", region,
                 usd * SPOT, "Preemptible", group="GPU"),
            _sku(COMPUTE, f"Commitment v1: {gpu} running in {place} for 1 Year", region,
                 usd * 0.63, "Commit1Yr", group="GPU"),
            _sku(COMPUTE, f"Commitment v1: {gpu} running in {place} for 3 Year", region,
                 usd * 0.35, "Commit3Yr", group="GPU"),
            _sku(COMPUTE, f"{gpu} attached to DWS Defined Duration VMs running in {place}", region,
                 usd * DEFINED, group="GPU"),
            _sku(COMPUTE, f"{gpu} attached to DWS Calendar Mode VMs running in {place}", region,
                 usd * 0.7, group="GPU"),
            _sku(COMPUTE, f"Reserved {short} GPU in {place}", region, usd, group="GPU"),
            _sku(COMPUTE, f"{gpu} Sole Tenancy running in {place}", region, usd * 1.1, group="GPU"),
        ]  # fmt: skip
    return found


def _disks(region: str) -> list[dict[str, Any]]:
    place, factor = PLACES[region]
    names = {
        f"SSD backed PD Capacity in {place}": 0.17,
        f"Balanced PD Capacity in {place}": 0.1,
        f"SSD backed Local Storage in {place}": 0.08,
        f"Storage PD Capacity in {place}": 0.04,
        f"DWS Defined Duration SSD backed Local Storage in {place}": 0.04,
    }
    local = f"SSD backed Local Storage attached to Spot Preemptible VMs in {place}"
    found = [
        _sku(COMPUTE, text, region, usd * factor, unit="GiBy.mo") for text, usd in names.items()
    ]
    found.append(_sku(COMPUTE, local, region, 0.048 * factor, "Preemptible", "GiBy.mo"))
    return found


def _fees(region: str) -> list[dict[str, Any]]:
    place, factor = PLACES[region]
    found: list[dict[str, Any]] = []
    for use in ("Training/Pipelines", "Online/Batch Prediction"):
        start = f"Vertex AI: {use} management fee on"
        for gpu, usd in GPUS.items():
            text = f"{start} {FEE_NAMES[gpu]} GPU in {place}"
            found.append(_sku(VERTEX, text, region, usd * factor * FEE, group="GPU"))
        for family, prices in FAMILIES.items():
            for part, usd, unit in zip(("Core", "RAM"), prices, ("h", "GiBy.h"), strict=True):
                name = family.removesuffix(" Predefined")
                text = f"{start} {name} Instance {part} in {place}"
                found.append(_sku(VERTEX, text, region, usd * factor * FEE, unit=unit))
    return found


def _sku(
    service: str,
    text: str,
    region: str,
    usd: float,
    usage: str = "OnDemand",
    unit: str = "h",
    *,
    group: str = "CPU",
) -> dict[str, Any]:
    digest = hashlib.sha256(f"{service}{text}{region}".encode()).hexdigest().upper()
    sku_id = f"{digest[:4]}-{digest[4:8]}-{digest[8:12]}"
    nanos = round(usd * 10**9)
    rate = {
        "startUsageAmount": 0,
        "unitPrice": {
            "currencyCode": "USD",
            "units": str(nanos // 10**9),
            "nanos": nanos % 10**9,
        },
    }
    family = "Storage" if unit == "GiBy.mo" else "Compute"
    return {
        "name": f"services/{service}/skus/{sku_id}",
        "skuId": sku_id,
        "description": text,
        "category": {
            "serviceDisplayName": "Compute Engine" if service == COMPUTE else "Vertex AI",
            "resourceFamily": family,
            "resourceGroup": group,
            "usageType": usage,
        },
        "serviceRegions": [region],
        "pricingInfo": [
            {
                "summary": "",
                "pricingExpression": {
                    "usageUnit": unit,
                    "displayQuantity": 1,
                    "tieredRates": [rate],
                    "usageUnitDescription": unit,
                    "baseUnit": "s",
                },
                "currencyConversionRate": 1,
                "effectiveTime": "2026-11-01T00:00:00Z",
            }
        ],
        "serviceProviderName": "Google",
        "geoTaxonomy": {"type": "REGIONAL", "regions": [region]},
    }
