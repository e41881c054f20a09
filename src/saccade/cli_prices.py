"""The verb `saccade prices`: words in, tables of machines, regions and costs out.

Everything is read from the price table that is there (`launch/prices.py`); only `refresh` asks
Google. Tables and JSON go to stdout, where prices come from and how old they are to stderr.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade import cli_output as out
from saccade.cli_options import AsJson
from saccade.config.errors import InputError

if TYPE_CHECKING:
    from saccade.launch.estimate import Estimate
    from saccade.launch.machines import Machine, Strategy
    from saccade.launch.prices import Price, PriceTable
    from saccade.launch.regions import Candidate

What = Annotated[
    str | None,
    typer.Argument(
        metavar="MACHINE|compare|refresh",
        help="A machine type: its regions, cheapest first. `compare`: one job priced in every way. "
        "`refresh`: read today's prices from Google's billing catalogue.",
        show_default=False,
    ),
]
Regions = Annotated[
    list[str] | None, typer.Option("--region", help="Only this region; may be repeated.")
]
Strategies = Annotated[
    list[str] | None,
    typer.Option("--strategy", help="Only spot, flex-start or on-demand; may be repeated."),
]


def register(app: typer.Typer) -> None:
    """Give the command line its verb."""
    app.command("prices")(prices)


def prices(
    what: What = None,
    region: Regions = None,
    strategy: Strategies = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=0, help="Only machines with so many GPUs.")
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option("--hours", min=0.01, help="Hours of training: adds what they cost, all in."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="With compare: write Markdown.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what GPUs cost on Google Cloud: by machine, region and way of renting.

    Prices carry their source and age; `~` marks inferred ones. Examples:

    - `saccade prices`
    - `saccade prices a2-highgpu-1g --hours 12`
    - `saccade prices --gpus 4 --strategy spot --region us-central1`
    - `saccade prices compare`
    - `saccade prices refresh --region us-central1`
    """
    from saccade.cli_inputs import export_dotenv

    ways = _strategies(strategy)
    _check_regions(region)
    if markdown and what != "compare":
        raise InputError("--markdown goes with compare\n  fix: saccade prices compare --markdown")
    export_dotenv()
    if what == "refresh":
        _refresh(region, as_json=as_json)
        return
    table = load_table()
    if what == "compare":
        _compare(table, hours=hours, markdown=markdown, as_json=as_json)
    elif what is not None:
        from saccade.launch.machines import machine

        _one_machine(machine(what), table, region, ways, hours=hours, as_json=as_json)
    else:
        _overview(table, region, ways, gpus=gpus, as_json=as_json)
    if not markdown:
        _say_source(table)


def load_table() -> PriceTable:
    """Read the price table that is there."""
    from saccade.cloud.settings import home_folder
    from saccade.launch.prices import load_prices

    return load_prices(
        home=home_folder(os.environ), fake=bool(os.environ.get("SACCADE_FAKE_CLOUD"))
    )


def _overview(
    table: PriceTable,
    regions: list[str] | None,
    ways: list[Strategy],
    *,
    gpus: int | None,
    as_json: bool,
) -> None:
    from saccade.launch.machines import MACHINES
    from saccade.launch.regions import exists

    found = [
        one
        for one in table.select(regions=regions, strategies=ways)
        if (gpus is None or MACHINES[one.machine].gpus == gpus)
        and exists(MACHINES[one.machine], one.region, seen=table.seen)
    ]
    if as_json:
        values = table_values(table) | {"prices": [_price_json(one, table) for one in found]}
        out.write_json(values)
        return
    cheapest: dict[tuple[str, Strategy], Price] = {}
    for one in found:
        cheapest.setdefault((one.machine, one.strategy), one)
    rows = [
        [name, f"{machine.gpus} x {machine.gpu}" if machine.gpus else "-", machine.vcpus,
         f"{machine.memory_gib:g}", *(_cell(cheapest.get((name, way))) for way in ways)]
        for name, machine in MACHINES.items()
        if any((name, way) in cheapest for way in ways)
    ]  # fmt: skip
    if not rows:
        raise InputError(
            "no price fits these filters\n  fix: leave --region, --strategy or --gpus out"
        )
    columns = ["machine", "GPUs", "vCPUs", "GiB", *(f"{way} USD/h" for way in ways)]
    out.table(columns, rows, right=[2, 3])


def _one_machine(
    machine: Machine,
    table: PriceTable,
    regions: list[str] | None,
    ways: list[Strategy],
    *,
    hours: float | None,
    as_json: bool,
) -> None:
    found, sums = rank_places(machine, table, regions, ways, hours=hours)
    if as_json:
        out.write_json(machine_values(machine, table, found, sums))
        return
    columns = ["rented", "region", "USD/h", "with fee", "per GPU", "standing"]
    if hours is not None:
        columns[5:5] = ["low", "expected", "high"]
    rows = []
    for one, total in zip(found, sums, strict=True):
        price = one.price
        fee = 0.0 if price is None else table.fee(price).span.expected
        usd = ["-"] * 3
        if price is not None:
            whole = price.usd_per_hour + fee
            usd = [
                f"{price.usd_per_hour:.3f}",
                f"{whole:.3f}",
                f"{whole / max(1, machine.gpus):.3f}",
            ]
        totals = []
        if hours is not None:
            parts = (total.low, total.expected, total.high) if total else (None,) * 3
            totals = ["-" if part is None else f"{part.total:.2f}" for part in parts]
        says = one.reason + (f"; fix: {one.fix}" if one.fix else "")
        rows.append([str(one.strategy), _place(one.region), *usd, *totals, says])
    out.table(columns, rows, right=range(2, len(columns) - 1))
    total = next((one for one in sums if one is not None), None)
    for line in total.assumptions if total is not None else ():
        out.show_note(f"assumed: {line}")


def rank_places(
    machine: Machine,
    table: PriceTable,
    regions: list[str] | None,
    ways: list[Strategy],
    *,
    hours: float | None,
) -> tuple[list[Candidate], list[Estimate | None]]:
    """Every place that has a machine, cheapest first, and what so many hours cost there."""
    from saccade.launch.estimate import estimate
    from saccade.launch.prices import Span
    from saccade.launch.regions import rank

    found = rank(machine, strategies=ways, prices=table, quotas={}, allowed=regions)
    found = [one for one in found if regions is None or one.region in regions]
    sums = [
        None
        if hours is None or one.price is None or not one.usable
        else estimate(machine, price=one.price, prices=table, hours=Span.exactly(hours))
        for one in found
    ]
    return found, sums


def machine_values(
    machine: Machine,
    table: PriceTable,
    found: list[Candidate],
    sums: list[Estimate | None],
) -> dict[str, Any]:
    """Return what `saccade prices MACHINE --json` writes."""
    rows = [
        {"region": one.region, "strategy": str(one.strategy), "usable": one.usable,
         "usd_per_hour": one.usd_per_hour, "quota": one.quota, "reason": one.reason,
         "fix": one.fix, "price": one.price and _price_json(one.price, table),
         "estimate": total and total.to_json()}
        for one, total in zip(found, sums, strict=True)
    ]  # fmt: skip
    return table_values(table) | {"machine": machine.name, "candidates": rows}


def _compare(table: PriceTable, *, hours: float | None, markdown: bool, as_json: bool) -> None:
    from saccade.launch import compare as worker

    job = worker.selector_job() if hours is None else worker.selector_job(hours)
    result = worker.compare(table, job=job)
    if as_json:
        out.write_json(worker.to_json(result))
    elif markdown:
        typer.echo(worker.markdown(result), nl=False)
    else:
        typer.echo(result.job.title)
        rows = [worker.cells(row) for row in result.rows]
        out.table(worker.HEADER, rows, right=range(3, 9))
        for note in result.notes:
            typer.echo(f"- {note}")


def _refresh(regions: list[str] | None, *, as_json: bool) -> None:
    from saccade.cloud.api.transport import connect
    from saccade.cloud.settings import home_folder
    from saccade.launch.skus import refresh

    google = connect(None, env=os.environ)
    table, gaps = refresh(google, home=home_folder(os.environ), today=date.today(), regions=regions)
    missing = [vars(gap) | {"strategy": str(gap.strategy)} for gap in gaps]
    if as_json:
        out.write_json(table_values(table) | {"prices": len(table.prices), "missing": missing})
        return
    typer.echo(f"{len(table.prices)} prices and {len(table.fees)} fees, written to {table.path}")
    if gaps:
        out.show_note(f"{len(gaps)} without a price, for example:")
    for gap in gaps[:5]:
        out.show_note(f"  {gap.machine} {gap.strategy} in {gap.region}: {gap.reason}")


def _say_source(table: PriceTable) -> None:
    from saccade.launch.compare import market_line
    from saccade.launch.prices import OLD_AFTER_DAYS

    age = table.age_days()
    advice = "; Spot prices change daily: saccade prices refresh" if age > OLD_AFTER_DAYS else ""
    out.show_note(f"prices: {table.title} of {table.fetched_at}, {age} days old{advice}")
    out.show_note(
        "Compute Engine's part; Vertex AI's fee, disk and storage come on top (--hours adds them)"
    )
    market = market_line(table.market)
    if market:
        out.show_note(market)


def _strategies(names: list[str] | None) -> list[Strategy]:
    from saccade.launch.machines import Strategy

    known = [str(one) for one in Strategy]
    for name in names or ():
        if name not in known:
            raise InputError(
                f"--strategy {name}: expected one of {', '.join(known)}\n  fix: --strategy spot"
            )
    return [one for one in Strategy if not names or str(one) in names]


def _check_regions(names: list[str] | None) -> None:
    from saccade.config.keys import nearest
    from saccade.launch.regions import VERTEX_REGIONS

    for name in names or ():
        if name not in VERTEX_REGIONS:
            near = nearest(name, VERTEX_REGIONS) or "us-central1"
            raise InputError(
                f"--region {name}: Vertex AI has no such region\n  fix: --region {near}"
            )


def _place(region: str) -> str:
    from saccade.launch.regions import LOCATIONS

    place = LOCATIONS.get(region)
    return f"{region} ({place})" if place else region


def _cell(price: Price | None) -> str:
    if price is None:
        return "-"
    guess = "~" if price.confidence == "inferred" else ""
    return f"{guess}{price.usd_per_hour:.3f} {price.region}"


def table_values(table: PriceTable) -> dict[str, Any]:
    """Where prices come from, and how old they are."""
    return {
        "source": table.title,
        "fetched_at": str(table.fetched_at),
        "age_days": table.age_days(),
        "path": None if table.path is None else str(table.path),
    }


def _price_json(price: Price, table: PriceTable) -> Mapping[str, Any]:
    fee = table.fee(price)
    return vars(price) | {
        "strategy": str(price.strategy),
        "confidence": str(price.confidence),
        "fetched_at": str(price.fetched_at),
        "age_days": price.age_days(),
        "fee": vars(fee.span) | {"source": fee.source, "confidence": str(fee.confidence)},
    }
