"""Prices from Google's billing catalogue: which SKU is which part of which machine.

SKUs as the catalogue lists them flow in; a `PriceTable` and a list of what could not be priced
flow out. A machine has no SKU of its own: its price is cores x + memory + GPUs + local SSD, each
found by usage type *and* the whole description. Commitments, reservations, calendar mode, sole
tenancy, custom machines and add-ons are never taken, and two SKUs that fit one part at different
prices give no price at all, because the cheaper of two is usually the wrong one. Left out: the
request itself (`cloud/api/billing.py`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import OutsideError
from saccade.launch.estimate import HOURS_PER_MONTH
from saccade.launch.machines import MACHINES, Machine, Strategy
from saccade.launch.prices import Confidence, Price, PriceTable, packaged_prices, save_prices
from saccade.launch.regions import regions_of

if TYPE_CHECKING:
    from saccade.cloud.api.transport import Google

COMPUTE = "6F81-5844-456A"
"""Compute Engine in the billing catalogue."""
VERTEX = "C7E2-9256-1C43"
"""Vertex AI in the billing catalogue."""
_log = logging.getLogger(__name__)

SOURCE = "Google Cloud Billing Catalog"
FAKE_SOURCE = "the fake cloud: not real prices"

DECOYS = re.compile(
    r"commitment|\breserved\b|calendar mode|sole tenancy|\bcustom\b|\bpremium\b|upgrade"
    r"|capacity optimized|overcommit|\bextended\b",
    re.IGNORECASE,
)
"""Words of SKUs that are no hourly price of an ordinary machine, whatever else they say."""

WHERE = r" (?:running )?in .+"
USAGE: Mapping[Strategy, frozenset[str]] = {
    Strategy.ON_DEMAND: frozenset({"OnDemand"}),
    Strategy.SPOT: frozenset({"Preemptible"}),
    # flex-start is billed by ordinary SKUs named "DWS Defined Duration"
    Strategy.FLEX_START: frozenset({"OnDemand"}),
}


@dataclass(frozen=True)
class Sku:
    """One readable SKU."""

    id: str
    description: str
    usage: str
    regions: frozenset[str]
    usd: float
    """Per hour of one unit; monthly prices are divided by 730."""


@dataclass(frozen=True)
class Part:
    """One part of a machine: how much of it, and the description its SKU must have."""

    name: str
    quantity: float
    pattern: str
    """Matched against the whole description, ignoring case."""
    usage: frozenset[str]


@dataclass(frozen=True)
class Gap:
    """A price that could not be worked out."""

    machine: str
    region: str
    strategy: Strategy
    reason: str


FAMILIES: Mapping[str, str] = {
    "a2-highgpu": "A2", "a2-ultragpu": "A2", "a3-highgpu": "A3", "a3-megagpu": "A3Plus",
    "a3-ultragpu": "A3Ultra", "g2-standard": "G2", "n1-standard": "N1 Predefined",
    "e2-standard": "E2",
}  # fmt: skip
"""Kind of machine -> family as SKUs write it; other kinds have no rule and get no price."""

GPUS: Mapping[str, str] = {
    "t4": "Nvidia Tesla T4 GPU",
    "l4": "Nvidia L4 GPU",
    "a100": "Nvidia Tesla A100 GPU",
    "a100_80gb": "Nvidia Tesla A100 80GB GPU",
    "h100": "Nvidia H100 80GB GPU",
    "h100_mega": "Nvidia H100 80GB (?:Plus|Mega) GPU",
    "h200": "Nvidia H200 141GB GPU",
}
"""GPU as the quota names it -> as Compute Engine's SKUs do. The 40 GB A100 has no size."""

FEE_GPUS: Mapping[str, str] = {
    "t4": "NVIDIA (?:Tesla )?T4",
    "l4": "NVIDIA L4",
    "a100": "NVIDIA (?:Tesla )?A100(?: 40GB)?",
    "a100_80gb": "NVIDIA (?:Tesla )?A100 80GB",
    "h100": "NVIDIA H100 80GB",
    "h100_mega": "NVIDIA H100 (?:Mega|Plus) 80GB",
    "h200": "NVIDIA H200(?: 141GB)?",
}
"""The same as Vertex AI's fee SKUs write it."""


def read_sku(raw: Mapping[str, Any]) -> Sku | None:
    """Read a SKU of the catalogue; None when it is no plain hourly price in USD above zero."""
    category, pricing = raw.get("category", {}), raw.get("pricingInfo", [])
    if not pricing:
        return None
    expression = pricing[-1].get("pricingExpression", {})
    amounts = [_usd(tier.get("unitPrice", {})) for tier in expression.get("tieredRates", [])]
    charged = [amount for amount in amounts if amount]
    per_hour = _per_hour(expression.get("usageUnit", ""))
    if len(charged) != 1 or None in amounts or per_hour is None:
        return None
    return Sku(
        id=raw.get("skuId", ""),
        description=" ".join(raw.get("description", "").split()),
        usage=category.get("usageType", ""),
        regions=frozenset(raw.get("serviceRegions", [])),
        usd=charged[0] * per_hour,
    )


def decoy(sku: Sku) -> str | None:
    """Say why a SKU must never be used, whatever part it resembles; None when it may."""
    if sku.usage not in ("OnDemand", "Preemptible"):
        return f"usage type {sku.usage or 'missing'}"
    found = DECOYS.search(sku.description)
    return f"says {found.group(0)!r}" if found else None


def parts_of(machine: Machine, strategy: Strategy) -> list[Part] | None:
    """List the parts a machine's price is made of; None when there is no rule for the machine."""
    family = FAMILIES.get(machine.machine_type.rpartition("-")[0])
    gpu = GPUS.get(machine.quota_part or "")
    if family is None or (machine.gpus and gpu is None):
        return None
    if strategy is Strategy.FLEX_START and machine.quota_part == "h100_mega":
        gpu = "Nvidia H100 Mega 80GB GPU"
    core, ram, card, ssd = {
        Strategy.ON_DEMAND: (
            f"{family} Instance Core{WHERE}", f"{family} Instance Ram{WHERE}",
            f"{gpu}{WHERE}", f"SSD backed Local Storage(?:{WHERE})?",
        ),
        Strategy.SPOT: (
            f"Spot Preemptible {family} Instance Core{WHERE}",
            f"Spot Preemptible {family} Instance Ram{WHERE}",
            f"{gpu} attached to Spot Preemptible VMs{WHERE}",
            f"SSD backed Local Storage attached to Spot Preemptible VMs(?:{WHERE})?",
        ),
        Strategy.FLEX_START: (
            f"DWS Defined Duration {family} Core{WHERE}",
            f"DWS Defined Duration {family} Ram{WHERE}",
            f"{gpu} attached to DWS Defined Duration VMs{WHERE}",
            f"DWS Defined Duration SSD backed Local Storage(?:{WHERE})?",
        ),
    }[strategy]  # fmt: skip
    rows = [
        ("cores", machine.vcpus, core), ("memory", machine.memory_gib, ram),
        ("GPUs", machine.gpus, card), ("local SSD", machine.local_ssd_gib, ssd),
    ]  # fmt: skip
    return [
        Part(name=name, quantity=quantity, pattern=pattern, usage=USAGE[strategy])
        for name, quantity, pattern in rows
        if quantity
    ]


def fee_parts_of(machine: Machine) -> list[Part] | None:
    """List the parts of Vertex AI's management fee; local SSD carries none."""
    family = FAMILIES.get(machine.machine_type.rpartition("-")[0])
    gpu = FEE_GPUS.get(machine.quota_part or "")
    if family is None or (machine.gpus and gpu is None):
        return None
    family = family.removesuffix(" Predefined")
    start = "Vertex AI: Training/Pipelines management fee on"
    rows = [
        ("cores", machine.vcpus, f"{start} {family} (?:Predefined )?Instance Core{WHERE}"),
        ("memory", machine.memory_gib, f"{start} {family} (?:Predefined )?Instance RAM{WHERE}"),
        ("GPUs", machine.gpus, f"{start} {gpu}(?: GPU)?{WHERE}"),
    ]
    return [
        Part(name=name, quantity=quantity, pattern=pattern, usage=frozenset({"OnDemand"}))
        for name, quantity, pattern in rows
        if quantity
    ]


def find(part: Part, *, region: str, skus: Iterable[Sku]) -> Sku | str:
    """Find the one SKU of a part; a sentence instead when there is none or no single price."""
    pattern = re.compile(part.pattern, re.IGNORECASE)
    fitting = [
        sku for sku in skus
        if region in sku.regions and sku.usage in part.usage
        and pattern.fullmatch(sku.description) and decoy(sku) is None
    ]  # fmt: skip
    if not fitting:
        return f"no SKU for its {part.name}"
    if len({round(sku.usd, 9) for sku in fitting}) > 1:
        named = "; ".join(f"{sku.description} {sku.usd:g}" for sku in fitting)
        return f"several prices for its {part.name}: {named}"
    return fitting[0]


def sum_up(parts: Iterable[Part], *, region: str, skus: Iterable[Sku]) -> float | str:
    """Add the parts of a machine in a region; a sentence instead when one is missing."""
    total, known = 0.0, list(skus)
    for part in parts:
        found = find(part, region=region, skus=known)
        if isinstance(found, str):
            return found
        total += part.quantity * found.usd
    return total


def build_table(
    compute: Iterable[Mapping[str, Any]],
    *,
    vertex: Iterable[Mapping[str, Any]],
    regions: Iterable[str] | None = None,
    today: date,
    source: str = SOURCE,
    seen: Mapping[str, frozenset[str]] | None = None,
) -> tuple[PriceTable, list[Gap]]:
    """Work out every machine's price from the catalogue; rates and market stay the packaged ones.

    `regions` limits the work; pairs that do not exist are not priced even if the list has them.
    """
    skus, fee_skus = _by_region(compute), _by_region(vertex)
    wanted = None if regions is None else set(regions)
    prices: list[Price] = []
    fees: list[Price] = []
    gaps: list[Gap] = []
    for machine in MACHINES.values():
        for region in regions_of(machine, seen=seen):
            if wanted is not None and region not in wanted:
                continue
            here = skus.get(region, [])
            for strategy in dict.fromkeys((*machine.strategies, Strategy.ON_DEMAND)):
                parts = parts_of(machine, strategy)
                usd = "no rule" if parts is None else sum_up(parts, region=region, skus=here)
                if isinstance(usd, str):
                    gaps.append(Gap(machine.name, region, strategy, usd))
                    continue
                prices.append(
                    _priced(machine, region, strategy, usd=usd, today=today, source=source)
                )
            parts = fee_parts_of(machine)
            there = fee_skus.get(region, [])
            usd = "no rule" if parts is None else sum_up(parts, region=region, skus=there)
            if not isinstance(usd, str):
                fees.append(
                    _priced(
                        machine, region, Strategy.ON_DEMAND, usd=usd, today=today, source=source
                    )
                )
    table = replace(
        packaged_prices(),
        title=source,
        fetched_at=today,
        prices={(one.machine, one.region, one.strategy): one for one in prices},
        fees={(one.machine, one.region): one for one in fees},
        seen=seen or {},
    )
    return table, gaps


def refresh(
    google: Google, *, home: Path, today: date, regions: Iterable[str] | None = None
) -> tuple[PriceTable, list[Gap]]:
    """Read the billing catalogue and write the table into Saccade's home.

    Raises OutsideError when the catalogue holds no price at all; the old table then stays.
    """
    from saccade.cloud.api.billing import skus

    source = FAKE_SOURCE if google.fake else SOURCE
    table, gaps = build_table(
        list(skus(google, COMPUTE)),
        vertex=list(skus(google, VERTEX)),
        regions=regions,
        today=today,
        source=source,
        seen=machine_regions(google),
    )
    if not table.prices:
        raise OutsideError(
            "the billing catalogue has no price of any known machine in these regions; the prices "
            "known before stay\n  fix: saccade prices refresh  # without --region"
        )
    return replace(table, path=save_prices(table, home=home, fake=google.fake)), gaps


def machine_regions(google: Google) -> dict[str, frozenset[str]]:
    """Ask Compute Engine which regions have which of our machine types.

    Empty when it does not answer (its API may be off): the packaged tables then decide.
    """
    from saccade.cloud.api.transport import ApiError

    names = {machine.machine_type for machine in MACHINES.values()}
    path = f"/compute/v1/projects/{google.project}/aggregated/machineTypes"
    params = {"filter": " OR ".join(f"(name={name})" for name in sorted(names))}
    found: dict[str, set[str]] = {}
    token: str | None = None
    while True:
        try:
            page = google.call(
                "GET", "compute", path, params=params | ({"pageToken": token} if token else {})
            )
        except ApiError as error:
            _log.warning("Compute Engine did not say where its machines are: %s", error)
            return {}
        for zone, content in page.get("items", {}).items():
            region = zone.removeprefix("zones/").rpartition("-")[0]
            for row in content.get("machineTypes", []):
                if row["name"] in names:
                    found.setdefault(row["name"], set()).add(region)
        token = page.get("nextPageToken")
        if not token:
            return {name: frozenset(regions) for name, regions in found.items()}


def _priced(
    machine: Machine, region: str, strategy: Strategy, *, usd: float, today: date, source: str
) -> Price:
    flex = strategy is Strategy.FLEX_START
    return Price(
        machine=machine.name,
        region=region,
        strategy=strategy,
        usd_per_hour=round(usd, 6),
        source=source,
        fetched_at=today,
        confidence=Confidence.INFERRED if flex else Confidence.LIST,
        # the catalogue itself never says "flex-start"
        note="from the DWS Defined Duration SKUs" if flex else "",
    )


def _by_region(raw: Iterable[Mapping[str, Any]]) -> dict[str, list[Sku]]:
    found: dict[str, list[Sku]] = {}
    for one in raw:
        sku = read_sku(one)
        if sku is not None and decoy(sku) is None:
            for region in sku.regions:
                found.setdefault(region, []).append(sku)
    return found


def _usd(money: Mapping[str, Any]) -> float | None:
    if money.get("currencyCode", "USD") != "USD":
        return None
    return int(money.get("units") or 0) + int(money.get("nanos") or 0) / 1e9


def _per_hour(unit: str) -> float | None:
    """Return the factor from a SKU's unit to hours; None for anything else (requests, bytes)."""
    return {"h": 1.0, "GiBy.h": 1.0, "GBy.h": 1.0, "GiBy.mo": 1 / HOURS_PER_MONTH,
            "GBy.mo": 1 / HOURS_PER_MONTH}.get(unit)  # fmt: skip
