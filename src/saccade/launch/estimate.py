"""What a job will cost: low, expected and high, as a sum of named parts.

A machine's price, the hours of training and a few stated assumptions flow in; an `Estimate` with
its parts (VM, fee, disk, storage, boot, preemption) and the assumptions in words flows out, and
the other way round the hours a budget pays for. Queued and preempted time costs nothing; booting
and pulling the image does. Left out: egress (warned about in `regions.py`), logs and tracking,
each cents for a job of this size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saccade.config.errors import InputError
from saccade.launch.machines import Machine, Strategy
from saccade.launch.prices import Fee, Price, PriceTable, Span

HOURS_PER_MONTH = 730
WARN_SHARE = 0.8
"""Share of the budget from which on a launch warns."""


@dataclass(frozen=True)
class Risk:
    """What is assumed about preemption and starting; nobody publishes these numbers."""

    preemptions_per_hour: Span
    """Of one Spot machine. An assumption, not a measurement: 1, 5 and 20 % per hour."""
    checkpoint_minutes: float
    """Time between checkpoints; half of it is lost on average, all of it at worst."""
    start_minutes: Span
    """Boot and image pull, which are billed, at the first start and after each preemption."""


DEFAULT_RISK = Risk(
    preemptions_per_hour=Span(0.01, 0.05, 0.20),
    checkpoint_minutes=10.0,
    start_minutes=Span(3.0, 8.0, 20.0),
)


@dataclass(frozen=True)
class Parts:
    """The parts of one sum, in USD."""

    vm: float
    """Compute Engine, for the hours of training."""
    fee: float
    """Vertex AI's management fee, for every billed hour."""
    disk: float
    """Boot disks."""
    storage: float
    """Checkpoints and finals in the bucket."""
    boot: float
    """Compute Engine, for the first boot and image pull."""
    preemption: float
    """Compute Engine, for lost work and restarts."""

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.vm + self.fee + self.disk + self.storage + self.boot + self.preemption

    def to_json(self) -> dict[str, float]:
        """Return the parts and their sum, in whole cents."""
        return {name: round(value, 2) for name, value in vars(self).items()} | {
            "total": round(self.total, 2)
        }


@dataclass(frozen=True)
class Estimate:
    """What a job will cost."""

    low: Parts
    expected: Parts
    high: Parts
    hours: Span
    """Hours of training, without starts and lost work."""
    billed_hours: Span
    """Hours a machine is held, per replica."""
    preemptions: Span
    assumptions: tuple[str, ...]
    price: Price
    budget: float | None = None

    @property
    def within_budget(self) -> bool | None:
        """Whether the high estimate stays within the budget; None without a budget."""
        return None if self.budget is None else self.high.total <= self.budget

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "low": self.low.to_json(),
            "expected": self.expected.to_json(),
            "high": self.high.to_json(),
            "hours": vars(self.hours),
            "billed_hours": {k: round(v, 3) for k, v in vars(self.billed_hours).items()},
            "preemptions": {k: round(v, 3) for k, v in vars(self.preemptions).items()},
            "usd_per_hour": self.price.usd_per_hour,
            "source": self.price.source,
            "fetched_at": self.price.fetched_at.isoformat(),
            "confidence": str(self.price.confidence),
            "assumptions": list(self.assumptions),
            "budget": self.budget,
            "within_budget": self.within_budget,
        }


def lost_hours_per_hour(strategy: Strategy, *, risk: Risk, replicas: int = 1) -> Span:
    """Return the hours lost to preemption per hour of training; none but on Spot.

    One preempted replica stops them all, so the hazard grows with their number.
    """
    if strategy is not Strategy.SPOT:
        return Span.exactly(0.0)
    hazard, start = risk.preemptions_per_hour, risk.start_minutes
    redo = Span(0.0, risk.checkpoint_minutes / 2, risk.checkpoint_minutes)
    return Span(
        hazard.low * replicas * (redo.low + start.low) / 60,
        hazard.expected * replicas * (redo.expected + start.expected) / 60,
        hazard.high * replicas * (redo.high + start.high) / 60,
    )


def estimate(
    machine: Machine,
    *,
    price: Price,
    prices: PriceTable,
    hours: Span,
    disk_gb: float = 100,
    replicas: int = 1,
    storage_gb: float = 10,
    storage_days: float = 30,
    risk: Risk = DEFAULT_RISK,
    budget: float | None = None,
) -> Estimate:
    """Estimate what training for so many hours costs, everything included."""
    if replicas < 1 or min(hours.low, hours.expected, hours.high) < 0:
        raise InputError("estimate: hours must not be negative and replicas at least 1")
    fee = prices.fee(price)
    lost = lost_hours_per_hour(price.strategy, risk=risk, replicas=replicas)
    disk, storage = prices.rates["disk_gb_month"].span, prices.rates["storage_gb_month"].span
    kept = storage_gb * storage_days * 24 / HOURS_PER_MONTH

    def parts(level: str) -> tuple[Parts, float]:
        trained = getattr(hours, level)
        start = getattr(risk.start_minutes, level) / 60
        redone = trained * getattr(lost, level)
        billed = trained + start + redone
        rate = price.usd_per_hour * replicas
        return Parts(
            vm=trained * rate,
            fee=billed * getattr(fee.span, level) * replicas,
            disk=billed * disk_gb * replicas * getattr(disk, level) / HOURS_PER_MONTH,
            storage=kept * getattr(storage, level),
            boot=start * rate,
            preemption=redone * rate,
        ), billed

    (low, least), (expected, likely), (high, most) = (
        parts(level) for level in ("low", "expected", "high")
    )
    hazard = risk.preemptions_per_hour.times(replicas if price.strategy is Strategy.SPOT else 0)
    return Estimate(
        low=low,
        expected=expected,
        high=high,
        hours=hours,
        billed_hours=Span(least, likely, most),
        preemptions=Span(
            hazard.low * hours.low, hazard.expected * hours.expected, hazard.high * hours.high
        ),
        assumptions=_assumptions(machine, price=price, fee=fee, risk=risk, replicas=replicas,
                                 disk_gb=disk_gb, storage_gb=storage_gb,
                                 storage_days=storage_days),
        price=price,
        budget=budget,
    )  # fmt: skip


def hourly_cost(price: Price, *, prices: PriceTable, disk_gb: float, replicas: int) -> Span:
    """Return what all machines of a job cost per billed hour: VM, fee and boot disk."""
    fee, disk = prices.fee(price).span, prices.rates["disk_gb_month"].span
    return Span(*(
        (price.usd_per_hour + getattr(fee, level)
         + disk_gb * getattr(disk, level) / HOURS_PER_MONTH) * replicas
        for level in ("low", "expected", "high")
    ))  # fmt: skip


def max_hours(
    budget: float, *, price: Price, prices: PriceTable, disk_gb: float = 100, replicas: int = 1
) -> float:
    """Return the billed hours after which the budget is spent at the *high* hourly cost.

    As a job's timeout it caps the machines' cost even if nobody watches. It counts all attempts
    of a launch together.
    """
    if budget <= 0:
        raise InputError(f"launch.budget = {budget:g}: must be above 0\n  fix: launch.budget=50")
    return budget / hourly_cost(price, prices=prices, disk_gb=disk_gb, replicas=replicas).high


def _assumptions(
    machine: Machine,
    *,
    price: Price,
    fee: Fee,
    risk: Risk,
    replicas: int,
    disk_gb: float,
    storage_gb: float,
    storage_days: float,
) -> tuple[str, ...]:
    many = f"{replicas} x " if replicas > 1 else ""
    hazard, start = risk.preemptions_per_hour, risk.start_minutes
    lines = [
        f"{many}{machine.name} {price.strategy} in {price.region}: {price.usd_per_hour:.3f} USD/h "
        f"({price.confidence}, {price.fetched_at.isoformat()}; {price.source})",
        f"Vertex AI fee {fee.span.low:.3f} / {fee.span.expected:.3f} / {fee.span.high:.3f} USD/h "
        f"per machine ({fee.confidence}, {fee.fetched_at.isoformat()}; {fee.source})",
        f"boot and image pull, billed: {start.low:g} / {start.expected:g} / {start.high:g} min "
        "(assumed)",
        f"boot disk {disk_gb:g} GB per machine; {storage_gb:g} GB in the bucket for "
        f"{storage_days:g} days",
    ]
    if price.strategy is Strategy.SPOT:
        lines.append(
            f"preempted {hazard.low:g} / {hazard.expected:g} / {hazard.high:g} times per machine "
            f"and hour (assumed; Google publishes none), each time losing half (at worst all) of "
            f"{risk.checkpoint_minutes:g} min between checkpoints and one start"
        )
    else:
        lines.append(f"{price.strategy} is not preempted once it runs")
    return tuple(lines)
