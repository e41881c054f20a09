"""Where a launch may run, in the order it is tried, and what that costs.

A configuration, a price table and quotas flow in; `Offer`s for the log, the ranking for people and
an estimate flow out. On this machine there is one offer and it is free; in Google Cloud every
region that has the machine is ranked by price and quota. Left out: prices and regions themselves
(`prices.py`, `regions.py`) and moving from one offer to the next (`supervise.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saccade.cloud.api.transport import Google
from saccade.cloud.findings import Finding, Level
from saccade.config.errors import SaccadeError
from saccade.config.schema import Config, LaunchConfig
from saccade.launch import fit
from saccade.launch.estimate import estimate, hourly_cost, max_hours
from saccade.launch.machines import Machine, Strategy, machine
from saccade.launch.prices import OLD_AFTER_DAYS, PriceTable, Span
from saccade.launch.regions import Candidate, quotas_of, rank
from saccade.launch.view import Offer

SHOWN = 12
"""Most rows of the ranking that are kept for display."""
HOURS_SPREAD = (0.8, 1.0, 1.5)
"""Low, expected and high hours around the hours a person expects."""


@dataclass(frozen=True)
class Choice:
    """The offers of a launch, and what is shown about them."""

    offers: tuple[Offer, ...]
    ranking: tuple[dict[str, Any], ...] = ()
    estimate: dict[str, Any] | None = None
    source: str = ""
    """Where the prices come from, with their age."""
    timeout_s: int = 24 * 3600
    findings: tuple[Finding, ...] = field(default_factory=tuple)
    kept: tuple[Offer, ...] = ()
    """The cheapest place for each strategy that was not asked for and is not taken back."""


def here(config: Config) -> Choice:
    """This machine: one offer, no price."""
    offer = Offer("local", "local", str(Strategy.ON_DEMAND), 0.0, "this machine")
    return Choice((offer,), source="your own machine", timeout_s=_timeout_s(config.launch))


def hugging_face(config: Config) -> Choice:
    """Hugging Face Jobs: one offer, whose price no table here has."""
    offer = Offer(
        "hf", config.launch.machine, str(Strategy.ON_DEMAND), None, "billed by the minute"
    )
    source = "no table here has Hugging Face's prices: huggingface.co/pricing"
    return Choice((offer,), source=source, timeout_s=_timeout_s(config.launch))


def in_google_cloud(
    config: Config, *, google: Google, prices: PriceTable, store_region: str | None
) -> Choice:
    """Every region that has the machine and is allowed, cheapest first."""
    launch = config.launch
    kind = machine(launch.machine)
    ways = list(Strategy) if launch.strategy == "cheapest" else [Strategy(launch.strategy)]
    quotas, quota_finding = _quotas(google, kind, ways, seen=prices.seen)
    found = rank(
        kind, strategies=ways, prices=prices, quotas=quotas, allowed=launch.regions or None,
        replicas=launch.replicas, store_region=store_region,
    )  # fmt: skip
    usable = [one for one in found if one.usable and one.price is not None]
    findings = [*quota_finding, *_fits(config, kind), *_of_ranking(launch, found, usable)]
    best = usable[0].price if usable else None
    others = [one for one in (Strategy.FLEX_START, Strategy.ON_DEMAND) if one not in ways]
    timeout_s = _timeout_s(launch)
    if best is not None and launch.budget is not None:
        hours = max_hours(
            launch.budget, price=best, prices=prices, disk_gb=launch.disk_gb,
            replicas=launch.replicas,
        )  # fmt: skip
        timeout_s = max(60, min(timeout_s, int(hours * 3600)))
    return Choice(
        offers=tuple(_offer(one, prices=prices, launch=launch) for one in usable),
        ranking=tuple(_row(one) for one in found[:SHOWN]),
        estimate=_estimate(launch, kind, usable, prices=prices),
        source=f"{prices.title}, {prices.age_days()} days old",
        timeout_s=timeout_s,
        findings=tuple(findings),
        kept=_kept(launch, kind, others, prices=prices, store_region=store_region),
    )


def _kept(
    launch: LaunchConfig, kind: Machine, ways: list[Strategy], *, prices: PriceTable,
    store_region: str | None,
) -> tuple[Offer, ...]:  # fmt: skip
    found = []
    for way in ways:
        ranked = rank(
            kind, strategies=[way], prices=prices, quotas={}, allowed=launch.regions or None,
            replicas=launch.replicas, store_region=store_region,
        )  # fmt: skip
        usable = [one for one in ranked if one.usable and one.price is not None]
        found += [_offer(one, prices=prices, launch=launch) for one in usable[:1]]
    return tuple(found)


def _quotas(
    google: Google, kind: Machine, ways: list[Strategy], *, seen: Mapping[str, frozenset[str]]
) -> tuple[Mapping[str, int | None], list[Finding]]:  # fmt: skip
    from saccade.cloud.api.quotas import quotas

    try:
        return quotas_of(kind, limits=quotas(google), strategies=ways, seen=seen), []
    except SaccadeError as error:
        text, _, fix = str(error).partition("\n  fix: ")
        said = f"unknown, which is not zero: {text}"
        return {}, [Finding("quota", Level.UNKNOWN, said, fix=fix)]


def _offer(one: Candidate, *, prices: PriceTable, launch: LaunchConfig) -> Offer:
    assert one.price is not None
    hourly = hourly_cost(
        one.price, prices=prices, disk_gb=launch.disk_gb, replicas=launch.replicas
    )  # fmt: skip
    return Offer(
        one.region, one.machine, str(one.strategy), round(hourly.expected, 4), one.reason
    )  # fmt: skip


def _row(one: Candidate) -> dict[str, Any]:
    return {
        "region": one.region, "machine": one.machine, "strategy": str(one.strategy),
        "usd_per_hour": one.usd_per_hour, "quota": one.quota, "usable": one.usable,
        "reason": one.reason, "fix": one.fix,
    }  # fmt: skip


def _of_ranking(
    launch: LaunchConfig, found: list[Candidate], usable: list[Candidate]
) -> list[Finding]:  # fmt: skip
    if not usable:
        # a place that was asked for says more than one that was not
        asked = [one for one in found if one.region in launch.regions] or found
        short = [one for one in asked if one.reason.startswith("quota ")]
        first = (short or asked or [None])[0]
        why = first.reason if first else "no region has it"
        fix = (first.fix if first else "") or "saccade prices"
        if short:
            rich = sorted({one.region for one in found if (one.quota or 0) >= launch.replicas})
            more = ", ".join(one for one in rich if one not in launch.regions)
            why += f"; there is quota in {more} (launch.regions)" if more else ""
        return [Finding("place", Level.BLOCK, f"{launch.machine}: {why}", fix=fix)]
    best = usable[0]
    findings = [Finding("place", Level.OK, f"{best.region} ({best.reason})")]
    age = best.price.age_days() if best.price else 0
    if age > OLD_AFTER_DAYS:
        said = f"prices are {age} days old; Spot prices may change daily"
        findings.append(Finding("prices", Level.WARN, said, fix="saccade prices refresh"))
    return findings


def _fits(config: Config, kind: Machine) -> list[Finding]:
    """Whether the model can work there at all: number format, memory, disk."""
    fits = [fit.dtype_fit(kind, dtype=config.model.dtype)]
    billions = fit.parameters_b(config.model.name)
    if billions is not None:
        fits.append(
            fit.memory_fit(
                kind, parameters_b=billions, sharded=config.training.parallel == "fsdp",
                batch_size=config.training.batch_size,
                recompute=config.training.gradient_checkpointing, replicas=config.launch.replicas,
            )
        )  # fmt: skip
        fits.append(fit.disk_fit(config.launch.disk_gb, parameters_b=billions))
    return [
        Finding(one.name, Level(one.level), one.message, one.have, one.need, one.fix)
        for one in fits
    ]  # fmt: skip


def _estimate(
    launch: LaunchConfig, kind: Machine, usable: list[Candidate], *, prices: PriceTable
) -> dict[str, Any] | None:  # fmt: skip
    if launch.hours is None or not usable or usable[0].price is None:
        return None
    low, expected, high = (launch.hours * share for share in HOURS_SPREAD)
    made = estimate(
        kind, price=usable[0].price, prices=prices, hours=Span(low, expected, high),
        disk_gb=launch.disk_gb, replicas=launch.replicas, budget=launch.budget,
    )  # fmt: skip
    return made.to_json()


def _timeout_s(launch: LaunchConfig) -> int:
    return int(launch.timeout_hours * 3600)
