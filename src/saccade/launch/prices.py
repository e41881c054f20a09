"""What machines cost: a dated table of prices, each with its source, age and confidence.

The packaged snapshot (`assets/prices.json`) or a refreshed table (`prices.json` in Saccade's home,
written by `saccade prices refresh`) flows in; a `PriceTable` flows out. The two are never mixed:
a refreshed table is used alone, and what it lacks has no price. Prices are Compute Engine's; the
management fee of Vertex AI is kept apart because it follows the on-demand list price whatever the
strategy. Left out: reading the billing catalogue (`skus.py`), and sums over a job (`estimate.py`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.launch.machines import MACHINES, Strategy

VERSION = 1
FILE = "prices.json"
FAKE_FILE = "fake-prices.json"
"""Where prices of the fake cloud go, so that they never pass for real ones."""
REFERENCE_REGION = "us-central1"
"""Whose on-demand list price stands in for the fee of a region that has none in the table."""
OLD_AFTER_DAYS = 30
"""Google may change Spot prices daily; from this age on a table is called old."""


class Confidence(StrEnum):
    """How a price is known."""

    LIST = "list"
    """Read from a price list."""
    INFERRED = "inferred"
    """Computed from other prices; what is billed may differ."""
    MEASURED = "measured"
    """Read off a bill."""


@dataclass(frozen=True)
class Span:
    """A low, an expected and a high value of one quantity."""

    low: float
    expected: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Span:
        """Make a span without width."""
        return cls(value, value, value)

    def times(self, factor: float) -> Span:
        """Scale all three."""
        return Span(self.low * factor, self.expected * factor, self.high * factor)


@dataclass(frozen=True)
class Price:
    """What one machine costs per hour, in one region, rented in one way."""

    machine: str
    region: str
    strategy: Strategy
    usd_per_hour: float
    """Compute Engine's part, for all GPUs of one machine; without Vertex AI's fee."""
    source: str
    fetched_at: date
    confidence: Confidence
    note: str = ""

    def age_days(self, *, today: date | None = None) -> int:
        """Count the days since the source was read."""
        return ((today or date.today()) - self.fetched_at).days


@dataclass(frozen=True)
class Rate:
    """A price that belongs to no machine, for example of a disk."""

    span: Span
    unit: str
    source: str
    fetched_at: date
    confidence: Confidence
    note: str = ""


@dataclass(frozen=True)
class Fee:
    """Vertex AI's management fee for one machine, in USD per hour."""

    span: Span
    source: str
    fetched_at: date
    confidence: Confidence


@dataclass(frozen=True)
class Offer:
    """What another provider asked for one GPU, on one day."""

    offer: str
    usd_per_gpu_hour: float
    date: str
    """Day or month of the reading, for example 2026-09."""
    usd_high: float | None = None


@dataclass(frozen=True)
class PriceTable:
    """All prices of one reading of one catalogue."""

    title: str
    fetched_at: date
    prices: Mapping[tuple[str, str, Strategy], Price]
    rates: Mapping[str, Rate]
    fees: Mapping[tuple[str, str], Price] = field(default_factory=dict)
    """(machine, region) -> fee read from Vertex AI's SKUs; empty in the packaged snapshot."""
    market: tuple[Offer, ...] = ()
    seen: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Machine type -> regions where Compute Engine listed it; empty in the packaged snapshot."""
    path: Path | None = None
    """The refreshed file; None for the packaged snapshot."""

    def price(self, machine: str, region: str, strategy: Strategy) -> Price | None:
        """Look a price up; None when it is unknown or the machine is not rented that way."""
        known = MACHINES.get(machine)
        if known is None or strategy not in known.strategies:
            return None
        return self.prices.get((machine, region, strategy))

    def list_price(self, machine: str, region: str) -> Price | None:
        """Look the on-demand list price up, also of machines that are not sold on demand."""
        return self.prices.get((machine, region, Strategy.ON_DEMAND))

    def age_days(self, *, today: date | None = None) -> int:
        """Count the days since the table was read."""
        return ((today or date.today()) - self.fetched_at).days

    def fee(self, price: Price) -> Fee:
        """Work out Vertex AI's management fee on top of a price.

        From the fee's own SKUs when the table has them. Otherwise a share: published bills show
        15 % of the *on-demand* price also for flex-start, so the discount of Spot does not reach
        it; the low end is the same share of the price paid.
        """
        read = self.fees.get((price.machine, price.region))
        if read is not None:
            span = Span.exactly(read.usd_per_hour)
            return Fee(span, read.source, read.fetched_at, read.confidence)
        share = self.rates["fee_share"]
        whole = self.list_price(price.machine, price.region) or self.list_price(
            price.machine, REFERENCE_REGION
        )
        base = whole.usd_per_hour if whole is not None else price.usd_per_hour
        low = share.span.low * min(base, price.usd_per_hour)
        span = Span(low, share.span.expected * base, share.span.high * base)
        return Fee(span, share.source, share.fetched_at, share.confidence)

    def select(
        self,
        *,
        machines: Iterable[str] | None = None,
        regions: Iterable[str] | None = None,
        strategies: Iterable[Strategy] | None = None,
    ) -> list[Price]:
        """List the prices that can be had, the cheapest of each machine first."""
        wanted = [None if names is None else set(names) for names in (machines, regions)]
        ways = None if strategies is None else set(strategies)
        order = {name: position for position, name in enumerate(MACHINES)}
        found = [
            price
            for (name, region, strategy), price in self.prices.items()
            if self.price(name, region, strategy) is not None
            and (wanted[0] is None or name in wanted[0])
            and (wanted[1] is None or region in wanted[1])
            and (ways is None or strategy in ways)
        ]
        return sorted(found, key=lambda one: (order[one.machine], one.usd_per_hour, one.region))


def load_prices(*, home: Path | None, fake: bool = False) -> PriceTable:
    """Read the refreshed table in this folder if there is one, else the packaged snapshot.

    `fake` reads the table refreshed from the fake cloud instead. Raises InputError when the
    refreshed file cannot be read. None means the packaged snapshot.
    """
    path = None if home is None else home / (FAKE_FILE if fake else FILE)
    if path is None or not path.exists():
        return packaged_prices()
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")), path=path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a table of prices ({error})\n  fix: rm {path} && saccade prices refresh"
        ) from error


def packaged_prices() -> PriceTable:
    """Read the snapshot that comes with Saccade."""
    text = resources.files("saccade.assets").joinpath(FILE).read_text(encoding="utf-8")
    return from_json(json.loads(text), path=None)


def from_json(values: Mapping[str, Any], *, path: Path | None) -> PriceTable:
    """Build the table from its JSON form."""
    if values["v"] != VERSION:
        raise ValueError(f"version {values['v']}, expected {VERSION}")
    sources = values["sources"]
    prices = [_price(row, sources) for row in values["prices"]]
    fees = [_price(row, sources) for row in values.get("fees", [])]
    return PriceTable(
        title=values["title"],
        fetched_at=date.fromisoformat(values["fetched_at"]),
        prices={(one.machine, one.region, one.strategy): one for one in prices},
        rates={name: _rate(row, sources) for name, row in values["rates"].items()},
        fees={(one.machine, one.region): one for one in fees},
        market=tuple(_offer(row) for row in values.get("market", [])),
        seen={name: frozenset(regions) for name, regions in values.get("seen", {}).items()},
        path=path,
    )


def to_json(table: PriceTable) -> dict[str, Any]:
    """Write the table as JSON, each source once."""
    rows = [*table.prices.values(), *table.fees.values(), *table.rates.values()]
    sources = {
        _source_id(one): {"title": one.source, "date": one.fetched_at.isoformat()} for one in rows
    }
    return {
        "v": VERSION,
        "title": table.title,
        "fetched_at": table.fetched_at.isoformat(),
        "sources": sources,
        "rates": {
            name: vars(rate.span)
            | {"unit": rate.unit, "source": _source_id(rate), "note": rate.note}
            | {"confidence": str(rate.confidence)}
            for name, rate in table.rates.items()
        },
        "market": [
            {"offer": one.offer, "usd_per_gpu_hour": one.usd_per_gpu_hour,
             "usd_high": one.usd_high, "date": one.date}
            for one in table.market
        ],
        "seen": {name: sorted(regions) for name, regions in table.seen.items()},
        "prices": [_row(one) for one in table.prices.values()],
        "fees": [_row(one) for one in table.fees.values()],
    }  # fmt: skip


def save_prices(table: PriceTable, *, home: Path, fake: bool = False) -> Path:
    """Write a refreshed table into Saccade's home; a reader never sees half a file."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / (FAKE_FILE if fake else FILE)
    handle, aside = tempfile.mkstemp(dir=home, prefix=FILE, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(to_json(table), file, indent=1)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return path


def _price(row: Mapping[str, Any], sources: Mapping[str, Any]) -> Price:
    source = sources[row["source"]]
    return Price(
        machine=row["machine"],
        region=row["region"],
        strategy=Strategy(row["strategy"]),
        usd_per_hour=float(row["usd_per_hour"]),
        source=source["title"],
        fetched_at=date.fromisoformat(source["date"]),
        confidence=Confidence(row["confidence"]),
        note=row.get("note", ""),
    )


def _rate(row: Mapping[str, Any], sources: Mapping[str, Any]) -> Rate:
    source = sources[row["source"]]
    return Rate(
        span=Span(float(row["low"]), float(row["expected"]), float(row["high"])),
        unit=row["unit"],
        source=source["title"],
        fetched_at=date.fromisoformat(source["date"]),
        confidence=Confidence(row["confidence"]),
        note=row.get("note", ""),
    )


def _offer(row: Mapping[str, Any]) -> Offer:
    return Offer(
        offer=row["offer"],
        usd_per_gpu_hour=float(row["usd_per_gpu_hour"]),
        date=row["date"],
        usd_high=row.get("usd_high"),
    )


def _source_id(one: Price | Rate) -> str:
    return f"{one.source} ({one.fetched_at.isoformat()})"


def _row(one: Price) -> dict[str, Any]:
    return {
        "machine": one.machine,
        "region": one.region,
        "strategy": str(one.strategy),
        "usd_per_hour": one.usd_per_hour,
        "source": _source_id(one),
        "confidence": str(one.confidence),
        "note": one.note,
    }
