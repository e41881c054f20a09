"""A worked comparison: one training job on one GPU or four, rented in each way, where it is cheap.

A job (hours on each machine) and a table of prices flow in; rows with the machine's price alone
and the whole estimate flow out, with the sentences that the numbers support. Every number comes
from the table and the stated assumptions, so the comparison stays true when prices change. Left
out: quotas and whether a machine is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from saccade.launch.estimate import Estimate, estimate
from saccade.launch.machines import MACHINES, Strategy
from saccade.launch.prices import REFERENCE_REGION, Offer, Price, PriceTable, Span
from saccade.launch.regions import rank

FOUR_GPU_SPEEDUP = Span(3.75, 12 / 3.5, 3.0)
"""How much faster 4 GPUs are with data parallel, best to worst: never 4x. Assumed."""


@dataclass(frozen=True)
class Job:
    """What is to be trained, and how long it takes on which machine."""

    title: str
    hours: Mapping[str, Span]
    """Machine -> hours of training."""


@dataclass(frozen=True)
class Row:
    """One way to run the job."""

    machine: str
    strategy: Strategy
    region: str
    price: Price
    hours: Span
    machine_usd: float
    """Compute Engine's price times the expected hours, and nothing else."""
    estimate: Estimate
    cheapest: bool
    """Whether no other region is cheaper for this machine and strategy."""


@dataclass(frozen=True)
class Comparison:
    """All rows, cheapest expected total first, and what they say."""

    job: Job
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    market: tuple[Offer, ...]
    table_title: str
    fetched_at: date


def selector_job(hours: float = 12.0) -> Job:
    """The selector of Qwen3-VL-2B, 12 hours on one A100 with 40 GB."""
    alone = Span.exactly(hours)
    faster = FOUR_GPU_SPEEDUP
    four = Span(hours / faster.low, hours / faster.expected, hours / faster.high)
    return Job(
        title=f"Qwen3-VL-2B selector training, {hours:g} h on one A100 40GB",
        # the 80 GB card is counted as no faster: the job is not short of memory
        hours={"a2-highgpu-1g": alone, "a2-highgpu-4g": four, "a2-ultragpu-1g": alone},
    )


def compare(prices: PriceTable, *, job: Job) -> Comparison:
    """Work the job out for each machine and strategy, in us-central1 and the cheapest region."""
    rows: list[Row] = []
    for name, hours in job.hours.items():
        for strategy in Strategy:
            found = [
                one.price
                for one in rank(
                    MACHINES[name], strategies=[strategy], prices=prices, quotas={}, allowed=None
                )
                if one.usable and one.price is not None
            ]
            rows += [
                _row(price, prices=prices, hours=hours, cheapest=price is found[0])
                for price in found
                if price is found[0] or price.region == REFERENCE_REGION
            ]
    rows.sort(key=lambda row: (row.estimate.expected.total, row.machine))
    return Comparison(
        job=job,
        rows=tuple(rows),
        notes=tuple(_notes(rows, prices=prices)),
        market=prices.market,
        table_title=prices.title,
        fetched_at=prices.fetched_at,
    )


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return plain values."""
    return {
        "job": comparison.job.title,
        "prices": {"title": comparison.table_title, "fetched_at": str(comparison.fetched_at)},
        "rows": [
            {
                "machine": row.machine,
                "strategy": str(row.strategy),
                "region": row.region,
                "cheapest_region": row.cheapest,
                "machine_usd": round(row.machine_usd, 2),
                **row.estimate.to_json(),
            }
            for row in comparison.rows
        ],
        "notes": list(comparison.notes),
        "market": [vars(one) for one in comparison.market],
    }


def markdown(comparison: Comparison) -> str:
    """Write the comparison as Markdown: table, sentences, dates."""
    lines = [
        f"**{comparison.job.title}.** Prices: {comparison.table_title} of {comparison.fetched_at}.",
        "",
        "| machine | rented | region | USD/h | hours | machine only | all in: low | expected "
        "| high | price of |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in comparison.rows]
    lines += ["", *(f"- {note}" for note in comparison.notes)]
    return "\n".join(lines) + "\n"


def cells(row: Row) -> list[str]:
    """Write a row for a table."""
    span, total = row.hours, row.estimate
    hours = f"{span.expected:.1f}"
    if span.low != span.high:
        hours += f" ({span.low:.1f}-{span.high:.1f})"
    return [
        row.machine,
        str(row.strategy),
        row.region,
        f"{row.price.usd_per_hour:.3f}",
        hours,
        f"{row.machine_usd:.2f}",
        f"{total.low.total:.2f}",
        f"{total.expected.total:.2f}",
        f"{total.high.total:.2f}",
        f"{row.price.fetched_at} ({row.price.confidence})",
    ]


HEADER = (
    "machine", "rented", "region", "USD/h", "hours", "machine only", "low", "expected", "high",
    "price of",
)  # fmt: skip


def market_line(offers: tuple[Offer, ...]) -> str:
    """Write what other providers asked, each with its date; empty without any."""
    if not offers:
        return ""
    parts = [
        f"{one.offer} {one.usd_per_gpu_hour:.2f}"
        + (f"-{one.usd_high:.2f}" if one.usd_high else "")
        + f" ({one.date})"
        for one in offers
    ]
    return "elsewhere, USD per GPU-hour: " + ", ".join(parts)


def _row(price: Price, *, prices: PriceTable, hours: Span, cheapest: bool) -> Row:
    machine = MACHINES[price.machine]
    return Row(
        machine=machine.name,
        strategy=price.strategy,
        region=price.region,
        price=price,
        hours=hours,
        machine_usd=price.usd_per_hour * hours.expected,
        estimate=estimate(machine, price=price, prices=prices, hours=hours),
        cheapest=cheapest,
    )


def _notes(rows: list[Row], *, prices: PriceTable) -> list[str]:
    notes = []
    if rows:
        best = rows[0]
        notes.append(
            f"Least expected: {best.machine} {best.strategy} in {best.region}, "
            f"{best.estimate.expected.total:.2f} USD all in."
        )
    at_home = {(row.machine, row.strategy): row for row in rows if row.region == REFERENCE_REGION}
    one = at_home.get(("a2-highgpu-1g", Strategy.SPOT))
    four = at_home.get(("a2-highgpu-4g", Strategy.SPOT))
    flex = at_home.get(("a2-highgpu-1g", Strategy.FLEX_START))
    if one and four:
        dearer = four.machine_usd / one.machine_usd - 1
        notes.append(
            f"4 GPUs on Spot in {REFERENCE_REGION}: {four.machine_usd:.2f} for "
            f"{four.hours.expected:.1f} h against {one.machine_usd:.2f} for "
            f"{one.hours.expected:.1f} h on one (machines only): sooner and {abs(dearer):.0%} "
            f"{'dearer' if dearer > 0 else 'cheaper'}, because 4 GPUs are "
            f"{one.hours.expected / four.hours.expected:.1f}x as fast, not 4x."
        )
    if one and flex:
        gap = flex.estimate.expected.total - one.estimate.expected.total
        notes.append(
            f"Flex-start in {REFERENCE_REGION} is expected to cost {abs(gap):.2f} USD "
            f"{'more' if gap > 0 else 'less'} than Spot, waits for a machine, and is not "
            "preempted (its price is inferred)."
        )
    big = prices.price("a2-ultragpu-1g", "us-east5", Strategy.SPOT)
    if one and big and big.usd_per_hour < one.price.usd_per_hour:
        notes.append(
            f"The 80 GB A100 on Spot in us-east5 ({big.usd_per_hour:.3f}/h) costs less than the "
            f"40 GB one in {REFERENCE_REGION} ({one.price.usd_per_hour:.3f}/h)."
        )
    notes.append(
        "All in = machine, Vertex AI's fee (15 % of the on-demand price, also on Spot: inferred "
        "from a published flex-start bill), boot disk, storage, boot and image pull, lost work."
    )
    offers = market_line(prices.market)
    return [*notes, offers[0].upper() + offers[1:] + "."] if offers else notes
