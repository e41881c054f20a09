"""SKUs as Google's billing catalogue writes them, with the ones that mislead among them.

Descriptions, usage types and unit prices are those of public readings of the catalogue in 2025 and
2026; ids are made up.
"""

from __future__ import annotations

from typing import Any

IOWA = ("us-central1", "us-east1", "us-west1")


def sku(
    description: str,
    usd: float,
    *,
    usage: str = "OnDemand",
    regions: tuple[str, ...] = IOWA,
    unit: str = "h",
    currency: str = "USD",
) -> dict[str, Any]:
    """Write one SKU in the catalogue's own form."""
    units, nanos = divmod(round(usd * 1e9), 10**9)
    money = {"currencyCode": currency, "units": str(units), "nanos": nanos}
    name = f"{sum(description.encode()):04X}-{len(description):04X}-0000"
    return {
        "name": f"services/6F81-5844-456A/skus/{name}",
        "skuId": name,
        "description": description,
        "category": {"serviceDisplayName": "Compute Engine", "resourceFamily": "Compute",
                     "resourceGroup": "GPU", "usageType": usage},
        "serviceRegions": list(regions),
        "pricingInfo": [
            {"pricingExpression": {"usageUnit": unit, "displayQuantity": 1,
                                   "tieredRates": [{"startUsageAmount": 0, "unitPrice": money}]}}
        ],
        "serviceProviderName": "Google",
    }  # fmt: skip


SPOT = "Preemptible"
RAM = "GiBy.h"
MONTH = "GiBy.mo"

HONEST = [
    sku("A2 Instance Core running in Americas", 0.03161),
    sku("A2 Instance Ram running in Americas", 0.00424, unit=RAM),
    sku("Nvidia Tesla A100 GPU running in Americas", 2.93391),
    sku("Nvidia Tesla A100 80GB GPU running in Americas", 3.92808),
    sku("SSD backed Local Storage", 0.08, unit=MONTH),
    sku("Spot Preemptible A2 Instance Core running in Americas", 0.01659, usage=SPOT),
    sku("Spot Preemptible A2 Instance Ram running in Americas", 0.00222, usage=SPOT, unit=RAM),
    sku("Nvidia Tesla A100 GPU attached to Spot Preemptible VMs running in Americas", 1.5399,
        usage=SPOT),
    sku("Nvidia Tesla A100 80GB GPU attached to Spot Preemptible VMs running in Americas", 2.158,
        usage=SPOT),
    sku("SSD backed Local Storage attached to Spot Preemptible VMs in Americas", 0.048,
        usage=SPOT, unit=MONTH),
    sku("DWS Defined Duration A2 Core running in Americas", 0.01739),
    sku("DWS Defined Duration A2 Ram running in Americas", 0.00233, unit=RAM),
    sku("Nvidia Tesla A100 GPU attached to DWS Defined Duration VMs running in Americas", 1.61365),
    sku("Nvidia Tesla A100 80GB GPU attached to DWS Defined Duration VMs running in Americas",
        1.846198),
    sku("DWS Defined Duration SSD backed Local Storage running in Americas", 0.08, unit=MONTH),
    sku("A3 Instance Core running in Americas", 0.025498),
    sku("A3 Instance Ram running in Americas", 0.00222, unit=RAM),
    sku("Nvidia H100 80GB GPU running in Americas", 9.796551),
]  # fmt: skip
"""Every part of the A2 machines in every strategy, and of the A3 ones on demand."""

DECOYS = [
    sku("Commitment v1: A2 Cpu in Americas for 1 Year", 0.0199, usage="Commit1Yr"),
    sku("Commitment v1: Nvidia Tesla A100 GPU running in Americas for 3 Year", 1.02,
        usage="Commit3Yr"),
    # a five-year commitment has the bare usage type
    sku("Commitment v1: A2 Instance Core running in Americas for 5 Years", 0.0125, usage="Commit"),
    # a commitment that claims to be on demand
    sku("Commitment v1: Nvidia Tesla A100 80GB GPU running in Americas", 1.0),
    sku("Reserved Nvidia Tesla A100 GPU in Americas", 0.0),
    sku("Reserved Nvidia Tesla A100 80GB GPU in Americas", 0.5),
    sku("Reserved Nvidia H100 80GB GPU in Americas in Calendar Mode", 4.57),
    sku("Nvidia Tesla A100 GPU in Calendar Mode running in Americas", 1.5),
    sku("DWS Calendar Mode A2 Core running in Americas", 0.02),
    sku("Nvidia H100 80GB GPU attached to DWS Defined Duration VMs running in Americas", 4.200761),
    sku("Nvidia H100 80GB Plus GPU running in Americas", 10.344276),
    sku("Nvidia H100 80GB Mega GPU attached to Sole Tenancy running in Americas", 3.0),
    sku("Sole Tenancy Premium for A2 Sole Tenancy Instance Core", 0.003),
    sku("A2 Sole Tenancy Instance Core running in Americas", 0.02),
    sku("A2 Custom Instance Core running in Americas", 0.01),
    sku("A2 Custom Extended Instance Ram running in Americas", 0.001, unit=RAM),
    sku("Committed Use Discount Premium for A2 Instance Core running in Americas", 0.001,
        usage="CmtCudPremium"),
    sku("Memory Optimized Upgrade Premium for A2 Instance Core running in Americas", 0.005),
    sku("Capacity Optimized A2 Instance Core running in Americas", 0.03),
    # says Spot, is priced on demand
    sku("Spot Preemptible A2 Instance Core running in Americas", 0.001, usage="OnDemand"),
    # says on demand, is priced as Spot
    sku("Nvidia Tesla A100 GPU running in Americas", 0.9, usage=SPOT),
    sku("Nvidia Tesla A100 GPU running in Netherlands", 3.0, regions=("europe-west4",)),
    # a region that has no such machine
    sku("Nvidia Tesla A100 80GB GPU running in Las Vegas", 1.18, regions=("us-west4",)),
    sku("A2 Instance Core running in Las Vegas", 0.03, regions=("us-west4",)),
    sku("A2 Instance Ram running in Las Vegas", 0.004, regions=("us-west4",), unit=RAM),
    sku("SSD backed Local Storage in Las Vegas", 0.1, regions=("us-west4",), unit=MONTH),
    sku("Nvidia Tesla A100 GPU running in Americas", 1.0, currency="EUR"),
    sku("Nvidia Tesla A100 GPU running in Americas", 700.0, unit="count"),
]  # fmt: skip
"""SKUs that look right to a careless eye."""

FEES = [
    sku("Vertex AI: Training/Pipelines management fee on NVIDIA A100 in Iowa", 0.4400865),
    sku("Vertex AI: Training/Pipelines management fee on NVIDIA A100 80GB in Iowa", 0.589212),
    sku("Vertex AI: Training/Pipelines management fee on A2 Instance Core in Iowa", 0.00474165),
    sku("Vertex AI: Training/Pipelines management fee on A2 Instance RAM in Iowa", 0.000636,
        unit="GBy.h"),
    sku("Vertex AI: Training/Pipelines on NVIDIA A100 in Iowa", 3.374),
    sku("Vertex AI: Online/Batch Prediction management fee on NVIDIA A100 in Iowa", 9.0),
    sku("Vertex AI: Training/Pipelines management fee on N1 Instance Core in Iowa", 0.0047),
]  # fmt: skip
"""Vertex AI's management fee, beside its other prices."""
