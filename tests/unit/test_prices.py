"""The price table: dated, sourced, and never mixed."""

from __future__ import annotations

import csv
import json
import os
from datetime import date
from pathlib import Path

import pytest

from saccade.config.errors import InputError
from saccade.launch.machines import MACHINES, Strategy, machine
from saccade.launch.prices import (
    FAKE_FILE,
    FILE,
    Confidence,
    load_prices,
    packaged_prices,
    save_prices,
    to_json,
)
from saccade.launch.regions import exists

REPOSITORY = Path(__file__).resolve().parents[2]
# read at import: a fixture of conftest.py hides the variables of this name from each test
SHARED = Path(os.environ.get("SACCADE_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
SPOT, FLEX, ON_DEMAND = Strategy.SPOT, Strategy.FLEX_START, Strategy.ON_DEMAND

JULY_2026 = {
    "g2-standard-8": (0.854, 0.480),
    "g2-standard-12": (1.000, 0.562),
    "g2-standard-48": (4.002, 2.250),
    "g4-standard-48": (4.500, 1.800),
    "a2-highgpu-1g": (3.673, 1.928),
    "a2-highgpu-4g": (14.69, 7.71),
    "a2-highgpu-8g": (29.39, 15.42),
    "a2-ultragpu-1g": (5.069, 2.760),
    "a2-ultragpu-4g": (20.28, 11.04),
    "a2-ultragpu-8g": (40.55, 22.08),
    "a3-highgpu-1g": (11.06, 6.326),
    "a3-highgpu-8g": (88.49, 50.61),
}
"""us-central1, on-demand and Spot, as published on 2026-07-30."""

CHEAPEST_SPOT = {
    ("g2-standard-8", "asia-northeast3"): 0.327,
    ("g2-standard-8", "us-east4"): 0.375,
    ("a2-highgpu-1g", "europe-west4"): 1.693,
    ("a2-highgpu-1g", "us-west4"): 1.817,
    ("a2-highgpu-4g", "europe-west4"): 6.77,
    ("a2-ultragpu-1g", "us-east5"): 1.778,
    ("a2-ultragpu-1g", "us-east4"): 2.367,
    ("a2-ultragpu-8g", "us-east5"): 14.22,
    ("a3-highgpu-1g", "europe-north1"): 1.28,
    ("a3-highgpu-8g", "us-east4"): 36.32,
}


@pytest.mark.parametrize("name", JULY_2026)
def test_the_snapshot_holds_the_published_prices(name: str) -> None:
    table = packaged_prices()
    whole, spot = table.list_price(name, "us-central1"), table.price(name, "us-central1", SPOT)
    assert whole is not None and spot is not None
    tolerance = 0.005 if JULY_2026[name][0] > 5 else 0.0005
    assert whole.usd_per_hour == pytest.approx(JULY_2026[name][0], abs=tolerance)
    assert spot.usd_per_hour == pytest.approx(JULY_2026[name][1], abs=tolerance)
    assert spot.fetched_at == date(2026, 7, 30)


@pytest.mark.parametrize(("name", "region"), CHEAPEST_SPOT)
def test_the_snapshot_holds_the_cheapest_regions(name: str, region: str) -> None:
    price = packaged_prices().price(name, region, SPOT)
    assert price is not None
    assert price.usd_per_hour == pytest.approx(CHEAPEST_SPOT[name, region], abs=0.0051)


def test_every_price_says_where_from_when_and_how_sure() -> None:
    table = packaged_prices()
    assert len(table.prices) > 100
    for price in table.prices.values():
        assert price.source and price.usd_per_hour > 0
        assert date(2025, 1, 1) < price.fetched_at <= date(2026, 11, 21)
        assert exists(machine(price.machine), price.region), price
        if price.strategy is FLEX:
            assert price.confidence is Confidence.INFERRED


def test_flex_start_is_about_half_of_the_list_price_for_a100_and_h100() -> None:
    table = packaged_prices()
    for name in ("a2-highgpu-1g", "a2-ultragpu-1g", "a3-highgpu-8g"):
        flex, whole = table.price(name, "us-central1", FLEX), table.list_price(name, "us-central1")
        assert flex is not None and whole is not None
        assert 0.4 < flex.usd_per_hour / whole.usd_per_hour < 0.6


def test_a_machine_not_sold_on_demand_has_a_list_price_but_no_price() -> None:
    table = packaged_prices()
    assert table.price("a3-highgpu-1g", "us-central1", ON_DEMAND) is None
    assert table.list_price("a3-highgpu-1g", "us-central1") is not None
    assert all(one.machine != "a3-highgpu-1g" for one in table.select(strategies=[ON_DEMAND]))


def test_the_fee_follows_the_on_demand_price_not_the_discount() -> None:
    table = packaged_prices()
    spot = table.price("a2-highgpu-1g", "us-central1", SPOT)
    assert spot is not None
    fee = table.fee(spot)
    assert fee.span.low == pytest.approx(0.15 * 1.928)
    assert fee.span.expected == pytest.approx(0.15 * 3.673385)
    assert fee.span.high == pytest.approx(0.20 * 3.673385)
    assert fee.confidence is Confidence.INFERRED


def test_the_fee_of_n1_standard_4_is_what_vertex_asks() -> None:
    # 0.19 on Compute Engine, 0.2185 on Vertex AI
    table = packaged_prices()
    price = table.price("n1-standard-4", "us-central1", ON_DEMAND)
    assert price is not None
    assert price.usd_per_hour + table.fee(price).span.expected == pytest.approx(0.2185)


def test_a_price_knows_its_age() -> None:
    table = packaged_prices()
    price = table.price("a2-highgpu-1g", "us-central1", SPOT)
    assert price is not None
    assert price.age_days(today=date(2026, 8, 9)) == 10
    assert table.age_days(today=date(2026, 8, 9)) == 10


def test_a_refreshed_table_is_used_alone(tmp_path: Path) -> None:
    table = packaged_prices()
    key = ("a2-highgpu-1g", "us-central1", SPOT)
    alone = type(table)(
        title="another reading",
        fetched_at=date(2026, 11, 1),
        prices={key: table.prices[key]},
        rates=table.rates,
        market=table.market,
        seen={"a2-highgpu-1g": frozenset({"us-central1"})},
    )
    path = save_prices(alone, home=tmp_path)
    again = load_prices(home=tmp_path)
    assert (again.path, again.title, set(again.prices)) == (path, "another reading", {key})
    assert again.prices[key] == table.prices[key]
    assert (again.rates, again.market, again.seen) == (table.rates, table.market, alone.seen)
    assert to_json(again) == to_json(alone)
    assert again.price("a2-highgpu-4g", "us-central1", SPOT) is None
    assert [one.name for one in tmp_path.iterdir()] == [FILE]


def test_prices_of_the_fake_cloud_never_pass_for_real_ones(tmp_path: Path) -> None:
    save_prices(packaged_prices(), home=tmp_path, fake=True)
    assert (tmp_path / FAKE_FILE).exists()
    assert load_prices(home=tmp_path).path is None
    assert load_prices(home=tmp_path, fake=True).path == tmp_path / FAKE_FILE


@pytest.mark.parametrize("text", ["", "{", "[]", '{"v": 7}', '{"v": 1, "prices": []}'])
def test_a_broken_table_is_named_with_its_cure(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=r"not a table of prices.*\n  fix: rm .* && saccade"):
        load_prices(home=tmp_path)


def test_without_a_refreshed_table_the_snapshot_is_used(tmp_path: Path) -> None:
    assert load_prices(home=tmp_path / "nothing") == load_prices(home=None) == packaged_prices()


def test_offers_of_others_are_dated() -> None:
    market = packaged_prices().market
    assert {one.offer.split()[0] for one in market} == {"RunPod", "Lambda", "HF"}
    assert all(one.date.startswith("2026-") and one.usd_per_gpu_hour > 0 for one in market)


def test_prices_grow_with_the_number_of_gpus() -> None:
    table = packaged_prices()
    for kind in ("a2-highgpu", "a2-ultragpu", "a3-highgpu"):
        one = table.price(f"{kind}-1g", "us-central1", SPOT)
        assert one is not None
        for gpus in (2, 4, 8):
            many = table.price(f"{kind}-{gpus}g", "us-central1", SPOT)
            assert many is not None
            assert many.usd_per_hour == pytest.approx(gpus * one.usd_per_hour, rel=1e-3)


def test_an_independent_catalogue_agrees_once_host_and_gpu_are_added() -> None:
    """A GPU row of that catalogue leaves the host out: together they are our list price."""
    path = SHARED / "cloud" / "gcp_prices_extract.csv"
    if not path.is_file():
        pytest.skip(f"no {path}; set SACCADE_SHARED_DATA to the folder of public data sets")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["Price"]) != 700.0]
    host = {r["InstanceType"]: float(r["Price"]) for r in rows if r["Region"] == "us-central1"}
    card = {
        (r["AcceleratorName"], int(r["AcceleratorCount"])): float(r["Price"])
        for r in rows
        if r["AcceleratorName"] and r["Region"] == "us-central1"
    }
    table = packaged_prices()
    for name, gpus in (("a2-highgpu-1g", 1), ("a2-highgpu-8g", 8)):
        whole = table.list_price(name, "us-central1")
        assert whole is not None
        assert whole.usd_per_hour == pytest.approx(host[name] + card["A100", gpus], rel=1e-4)
        # the host alone is a fifth of it: taking it for the machine would be the trap
        assert host[name] < 0.25 * whole.usd_per_hour
    # its "on-demand" H100 and A100-80 are half-price SKUs of flex-start: they fit ours only there
    flex = table.price("a3-highgpu-1g", "us-central1", FLEX)
    whole = table.list_price("a3-highgpu-1g", "us-central1")
    assert flex is not None and whole is not None
    assert card["H100", 1] < 0.5 * whole.usd_per_hour
    assert card["H100", 1] < flex.usd_per_hour


def test_the_snapshot_names_known_machines_only() -> None:
    text = (REPOSITORY / "src" / "saccade" / "assets" / FILE).read_text(encoding="utf-8")
    values = json.loads(text)
    assert {row["machine"] for row in values["prices"]} <= set(MACHINES)
    assert all(source["url"].startswith("https://") for source in values["sources"].values())
    keys = [(row["machine"], row["region"], row["strategy"]) for row in values["prices"]]
    assert len(keys) == len(set(keys))
