"""Where a machine can be had, and in which order to try: price x existence x quota.

A machine, a table of prices and quotas flow in; one `Candidate` per region and strategy flows out,
usable ones first and cheapest first, each excluded one with its reason and, where there is one,
the command that would change it. A price list also prices regions that have no such machine, so
existence is a table of its own, cut with Vertex AI's regions. Quota None means unknown, never
zero. Left out: whether a machine is free right now; nobody publishes that, so the launch tries
candidates in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from saccade.launch.estimate import DEFAULT_RISK, Risk, lost_hours_per_hour
from saccade.launch.machines import Machine, Strategy
from saccade.launch.prices import Price, PriceTable

LOCATIONS: Mapping[str, str] = MappingProxyType(
    {
        "asia-east1": "Taiwan",
        "asia-northeast1": "Tokyo",
        "asia-northeast3": "Seoul",
        "asia-southeast1": "Singapore",
        "europe-north1": "Finland",
        "europe-west4": "Netherlands",
        "me-west1": "Tel Aviv",
        "us-central1": "Iowa",
        "us-east1": "South Carolina",
        "us-east4": "Northern Virginia",
        "us-east5": "Columbus",
        "us-west1": "Oregon",
        "us-west3": "Salt Lake City",
        "us-west4": "Las Vegas",
    }
)
"""Region -> place, of the regions in the tables here."""

EXISTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "a2-highgpu": frozenset(
            {
                "asia-northeast1", "asia-northeast3", "asia-southeast1", "europe-west4",
                "me-west1", "us-central1", "us-east1", "us-west1", "us-west3", "us-west4",
            }
        ),
        "a2-ultragpu": frozenset(
            {"asia-southeast1", "europe-west4", "us-central1", "us-east4", "us-east5"}
        ),
        "a3-highgpu": frozenset({"asia-northeast1", "europe-north1", "us-central1", "us-east4"}),
        "g2-standard": frozenset({"asia-northeast3", "us-central1", "us-east4"}),
        "g4-standard": frozenset({"us-central1"}),
        "a3-megagpu": frozenset({"us-central1"}),
        "a3-ultragpu": frozenset({"us-central1"}),
        "a4-highgpu": frozenset({"us-central1"}),
    }
)  # fmt: skip
"""Kind of machine -> regions where Compute Engine has it. Complete for A2 as of July 2026; the
other rows hold only regions that were seen to have the machine. CPU machines exist everywhere."""

VERTEX_REGIONS: frozenset[str] = frozenset(
    {
        "africa-south1", "asia-east1", "asia-east2", "asia-northeast1", "asia-northeast2",
        "asia-northeast3", "asia-south1", "asia-southeast1", "asia-southeast2",
        "australia-southeast1", "australia-southeast2", "europe-central2", "europe-north1",
        "europe-southwest1", "europe-west1", "europe-west2", "europe-west3", "europe-west4",
        "europe-west6", "europe-west8", "europe-west9", "europe-west12", "me-central1",
        "me-central2", "me-west1", "northamerica-northeast1", "northamerica-northeast2",
        "southamerica-east1", "southamerica-west1", "us-central1", "us-east1", "us-east4",
        "us-east5", "us-south1", "us-west1", "us-west2", "us-west3", "us-west4",
    }
)  # fmt: skip
"""Regions of Vertex AI; which GPUs it offers in each is a subset that only a job finds out."""


UNLIMITED = -1
"""How Google writes a quota without limit."""


class Limit(Protocol):
    """A quota metric with its values by region (`cloud.api.quotas.Quota`)."""

    def limit(self, region: str) -> int | None:
        """Return the units allowed in a region; None when unknown."""
        ...


@dataclass(frozen=True)
class Candidate:
    """One way to get a machine."""

    region: str
    machine: str
    strategy: Strategy
    usd_per_hour: float | None
    """Compute Engine's part for one machine; None when no price is known."""
    quota: int | None
    """Units allowed; None when unknown, which is not zero."""
    reason: str
    """Why it stands where it does, or why it is excluded."""
    usable: bool
    fix: str = ""
    """The command that may make it usable."""
    price: Price | None = None
    usd_per_useful_hour: float | None = None
    """With Vertex AI's fee and the expected share of lost hours: what the order goes by."""


def kind(machine: Machine) -> str:
    """Return the part of a machine type before its size, for example `a2-highgpu`."""
    return machine.machine_type.rpartition("-")[0]


def exists(
    machine: Machine, region: str, *, seen: Mapping[str, frozenset[str]] | None = None
) -> bool:
    """Tell whether the region has the machine and Vertex AI serves the region.

    `seen` is what Compute Engine listed (`PriceTable.seen`); without it the tables here decide.
    """
    return region in VERTEX_REGIONS and region in _places(machine, seen or {})


def regions_of(machine: Machine, *, seen: Mapping[str, frozenset[str]] | None = None) -> list[str]:
    """List the regions that have the machine, by name."""
    return sorted(VERTEX_REGIONS & _places(machine, seen or {}))


def _places(machine: Machine, seen: Mapping[str, frozenset[str]]) -> frozenset[str]:
    if machine.machine_type.startswith("n1-") and machine.gpus:
        return frozenset({"us-central1"})  # lists of machine types do not say where T4 are
    if seen:
        return seen.get(machine.machine_type, frozenset())
    return EXISTS.get(kind(machine), VERTEX_REGIONS)


def quota_key(region: str, machine: Machine, strategy: Strategy) -> str:
    """Name a quota in the mapping `rank` takes: `REGION/METRIC`."""
    return f"{region}/{machine.quota_name(strategy)}"


def quotas_of(
    machine: Machine,
    *,
    limits: Mapping[str, Limit],
    strategies: Iterable[Strategy],
    seen: Mapping[str, frozenset[str]] | None = None,
) -> dict[str, int | None]:
    """Pick a machine's quotas out of all Vertex AI limits by metric, as `rank` takes them."""
    found: dict[str, int | None] = {}
    for strategy in strategies:
        limit = limits.get(machine.quota_name(strategy))
        for region in regions_of(machine, seen=seen):
            key = quota_key(region, machine, strategy)
            found[key] = None if limit is None else limit.limit(region)
    return found


def rank(
    machine: Machine,
    *,
    strategies: Iterable[Strategy],
    prices: PriceTable,
    quotas: Mapping[str, int | None],
    allowed: Iterable[str] | None,
    replicas: int = 1,
    risk: Risk = DEFAULT_RISK,
    store_region: str | None = None,
) -> list[Candidate]:
    """List every way to get the machine: usable and cheap first, excluded ones last.

    `quotas` maps `quota_key` to the units allowed (missing or None: unknown); `allowed` are the
    regions the user permits (None: all); `store_region` is where checkpoints lie.
    """
    permitted = None if allowed is None else list(allowed)
    regions = sorted({*regions_of(machine, seen=prices.seen), *(permitted or ())})
    found = [
        _judge(
            machine, region, strategy, prices=prices, quotas=quotas, allowed=permitted,
            replicas=replicas, risk=risk, store_region=store_region,
        )
        for region in regions
        for strategy in strategies
    ]  # fmt: skip

    def order(one: Candidate) -> tuple[bool, float, bool, str]:
        cost = one.usd_per_useful_hour
        return (not one.usable, cost if cost is not None else float("inf"),
                one.quota is None, one.region)  # fmt: skip

    return sorted(found, key=order)


def _judge(
    machine: Machine,
    region: str,
    strategy: Strategy,
    *,
    prices: PriceTable,
    quotas: Mapping[str, int | None],
    allowed: list[str] | None,
    replicas: int,
    risk: Risk,
    store_region: str | None,
) -> Candidate:
    there = exists(machine, region, seen=prices.seen)
    price = prices.price(machine.name, region, strategy) if there else None
    quota = quotas.get(quota_key(region, machine, strategy))
    need = machine.quota_units() * replicas
    reason, fix = _excluded(
        machine, region, strategy, price=price, quota=quota, need=need, allowed=allowed,
        places=regions_of(machine, seen=prices.seen),
    )  # fmt: skip
    useful = None
    if price is not None:
        hourly = price.usd_per_hour + prices.fee(price).span.expected
        lost = lost_hours_per_hour(strategy, risk=risk, replicas=replicas).expected
        useful = hourly * (1 + lost)
    return Candidate(
        region=region,
        machine=machine.name,
        strategy=strategy,
        usd_per_hour=None if price is None else price.usd_per_hour,
        quota=quota,
        reason=reason or _standing(price, quota=quota, need=need, region=region,
                                   store_region=store_region),
        usable=not reason,
        fix=fix,
        price=price,
        usd_per_useful_hour=useful,
    )  # fmt: skip


def _excluded(
    machine: Machine,
    region: str,
    strategy: Strategy,
    *,
    price: Price | None,
    quota: int | None,
    need: int,
    allowed: list[str] | None,
    places: list[str],
) -> tuple[str, str]:
    """Say why a candidate cannot be used, and what would change it; empty when it can."""
    if allowed is not None and region not in allowed:
        return "not among launch.regions", f"launch.regions=[{','.join([*allowed, region])}]"
    if region not in VERTEX_REGIONS:
        return f"Vertex AI has no region {region}", ""
    if region not in places:
        where = ", ".join(places) or "no region"
        return f"{region} has no {machine.name}; it is known in {where}", ""
    if strategy not in machine.strategies:
        ways = ", ".join(machine.strategies)
        return f"{machine.name} is not rented {strategy}, only {ways}", (
            f"launch.strategy={machine.strategies[0]}"
        )
    if quota is not None and quota != UNLIMITED and quota < need:
        metric = machine.quota_name(strategy)
        return f"quota {metric} in {region}: have {quota}, need {need}", (
            f"saccade cloud setup --only quota  # asks for {metric} in {region}"
        )
    if price is None:
        return "no price known", "saccade prices refresh"
    return "", ""


def _standing(
    price: Price | None, *, quota: int | None, need: int, region: str, store_region: str | None
) -> str:
    assert price is not None
    parts = [f"{price.confidence} price of {price.fetched_at.isoformat()}"]
    parts.append("quota unknown" if quota is None else f"quota {quota}, need {need}")
    if store_region is not None and store_region != region:
        parts.append(f"checkpoints cross regions ({store_region}): egress is billed")
    return "; ".join(parts)
