"""Reading the billing catalogue: the right SKUs are added up, misleading ones never."""

from __future__ import annotations

import itertools
import random
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from saccade.launch.machines import MACHINES, Strategy, machine
from saccade.launch.prices import Confidence, PriceTable, load_prices, save_prices
from saccade.launch.skus import (
    SOURCE,
    build_table,
    decoy,
    fee_parts_of,
    find,
    parts_of,
    read_sku,
    sum_up,
)
from tests.sku_catalogue import DECOYS, FEES, HONEST, SPOT, sku

TODAY = date(2026, 11, 21)


def table_of(*skus: dict[str, Any], fees: list[dict[str, Any]] | None = None) -> PriceTable:
    return build_table(skus, vertex=fees or [], today=TODAY)[0]


def price(table: PriceTable, name: str, strategy: Strategy, region: str = "us-central1") -> float:
    found = table.price(name, region, strategy)
    assert found is not None
    return found.usd_per_hour


def test_a_machine_is_the_sum_of_cores_memory_and_gpus() -> None:
    table = table_of(*HONEST)
    assert price(table, "a2-highgpu-1g", Strategy.ON_DEMAND) == pytest.approx(3.67363)
    assert price(table, "a2-highgpu-1g", Strategy.SPOT) == pytest.approx(1.92768)
    assert price(table, "a2-highgpu-1g", Strategy.FLEX_START) == pytest.approx(2.02038)
    assert price(table, "a2-highgpu-4g", Strategy.SPOT) == pytest.approx(4 * 1.92768)


def test_the_local_ssd_belongs_to_the_80_gb_machine() -> None:
    table = table_of(*HONEST)
    expected = 12 * 0.03161 + 170 * 0.00424 + 3.92808 + 375 * 0.08 / 730
    assert price(table, "a2-ultragpu-1g", Strategy.ON_DEMAND) == pytest.approx(expected, abs=1e-6)
    assert expected == pytest.approx(5.069, abs=1e-3)


@pytest.mark.parametrize("one", DECOYS, ids=lambda one: one["description"] + str(one["skuId"]))
def test_a_decoy_changes_no_price(one: dict[str, Any]) -> None:
    assert table_of(*HONEST, one).prices == table_of(*HONEST).prices


def test_all_decoys_together_in_any_order_change_no_price() -> None:
    clean = table_of(*HONEST).prices
    for seed in range(5):
        mixed = [*HONEST, *DECOYS]
        random.Random(seed).shuffle(mixed)
        assert table_of(*mixed).prices == clean


def test_decoys_alone_price_no_machine() -> None:
    # what is left is flex-start's own H100, which lacks its cores
    assert table_of(*DECOYS).prices == {}


@pytest.mark.parametrize(
    ("description", "usage", "why"),
    [
        ("Commitment v1: A2 Cpu in Americas for 1 Year", "Commit1Yr", "usage type Commit1Yr"),
        ("Commitment v1: A2 Core in Americas for 5 Years", "Commit", "usage type Commit"),
        ("Reserved Nvidia Tesla A100 GPU in Americas", "OnDemand", "Reserved"),
        ("Nvidia H100 80GB GPU in Americas in Calendar Mode", "OnDemand", "Calendar Mode"),
        ("A2 Sole Tenancy Instance Core running in Americas", "OnDemand", "Sole Tenancy"),
        ("A2 Custom Instance Core running in Americas", "OnDemand", "Custom"),
        ("Upgrade Premium for A2 Instance Core", "OnDemand", "Upgrade"),
    ],
)
def test_a_decoy_says_what_gave_it_away(description: str, usage: str, why: str) -> None:
    read = read_sku(sku(description, 1.0, usage=usage))
    assert read is not None
    assert why in (decoy(read) or "")


def test_the_40_gb_a100_is_never_the_80_gb_one() -> None:
    large = [one for one in HONEST if "80GB" in one["description"]]
    rest = [one for one in HONEST if one not in large]
    assert table_of(*rest).price("a2-ultragpu-1g", "us-central1", Strategy.ON_DEMAND) is None
    small = [one for one in HONEST if "A100 GPU" not in one["description"]]
    assert table_of(*small).price("a2-highgpu-1g", "us-central1", Strategy.ON_DEMAND) is None


def test_two_prices_for_one_part_give_none_and_say_so() -> None:
    other = sku("A2 Instance Core running in Iowa", 0.02)
    table, gaps = build_table([*HONEST, other], vertex=[], today=TODAY)
    assert table.price("a2-highgpu-1g", "us-central1", Strategy.ON_DEMAND) is None
    reasons = [gap.reason for gap in gaps if gap.machine == "a2-highgpu-1g"]
    assert any("several prices for its cores" in reason for reason in reasons)
    same = sku("A2 Instance Core running in Iowa", 0.03161)
    assert table_of(*HONEST, same).prices == table_of(*HONEST).prices


def test_a_missing_part_gives_no_price_rather_than_a_low_one() -> None:
    for left_out in ("A2 Instance Core running", "A2 Instance Ram running", "A100 GPU running"):
        skus = [one for one in HONEST if left_out not in one["description"]]
        assert table_of(*skus).price("a2-highgpu-1g", "us-central1", Strategy.ON_DEMAND) is None
    no_disk = [one for one in HONEST if "SSD" not in one["description"]]
    assert table_of(*no_disk).price("a2-ultragpu-1g", "us-central1", Strategy.SPOT) is None


def test_a_region_without_the_machine_is_not_priced_though_the_list_has_it() -> None:
    vegas = [
        sku(one["description"], 1.0, usage=one["category"]["usageType"], regions=("us-west4",),
            unit=one["pricingInfo"][0]["pricingExpression"]["usageUnit"])
        for one in HONEST
    ]  # fmt: skip
    table = table_of(*vegas)
    assert table.price("a2-highgpu-1g", "us-west4", Strategy.SPOT) is not None
    assert table.price("a2-ultragpu-1g", "us-west4", Strategy.SPOT) is None


def test_where_machines_were_seen_overrides_the_packaged_tables() -> None:
    seen = {"a2-ultragpu-1g": frozenset({"us-east1"}), "a2-highgpu-1g": frozenset({"us-west1"})}
    table, _ = build_table(HONEST, vertex=[], today=TODAY, seen=seen)
    assert {(one.machine, one.region) for one in table.prices.values()} == {
        ("a2-ultragpu-1g", "us-east1"),
        ("a2-highgpu-1g", "us-west1"),
    }


def test_the_fee_comes_from_its_own_skus() -> None:
    table = table_of(*HONEST, fees=FEES)
    spot = table.price("a2-highgpu-1g", "us-central1", Strategy.SPOT)
    assert spot is not None
    fee = table.fee(spot)
    assert fee.span.expected == pytest.approx(0.15 * 3.67363, rel=1e-4)
    assert fee.span.low == fee.span.high == fee.span.expected
    assert fee.source == SOURCE


def test_flex_start_stays_inferred_and_every_price_is_dated() -> None:
    for one in table_of(*HONEST).prices.values():
        flex = one.strategy is Strategy.FLEX_START
        assert one.confidence is (Confidence.INFERRED if flex else Confidence.LIST)
        assert (one.source, one.fetched_at) == (SOURCE, TODAY)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"pricingInfo": []},
        {"pricingInfo": [{}]},
        sku("A2 Instance Core running in Americas", 0.0),
        sku("A2 Instance Core running in Americas", 0.1, currency="EUR"),
        sku("A2 Instance Core running in Americas", 0.1, unit="By"),
    ],
)
def test_a_sku_without_one_plain_hourly_price_is_not_read(broken: dict[str, Any]) -> None:
    assert read_sku(broken) is None


def test_several_charged_tiers_are_not_read_but_a_free_one_is_skipped() -> None:
    one = sku("A2 Instance Core running in Americas", 0.5)
    tiers = one["pricingInfo"][0]["pricingExpression"]["tieredRates"]
    tiers.insert(0, {"startUsageAmount": 0, "unitPrice": {"currencyCode": "USD", "units": "0"}})
    read = read_sku(one)
    assert read is not None and read.usd == 0.5
    tiers.append({"startUsageAmount": 9, "unitPrice": {"currencyCode": "USD", "units": "1"}})
    assert read_sku(one) is None


def test_money_is_units_and_nanos() -> None:
    read = read_sku(sku("Nvidia H100 80GB GPU running in Americas", 9.796551))
    assert read is not None
    assert read.usd == pytest.approx(9.796551, abs=1e-9)


def test_no_pattern_of_one_part_fits_a_sku_of_another() -> None:
    """Over all machines: a SKU is the same part wherever it is used."""
    uses: dict[str, set[tuple[str, Strategy]]] = {}
    skus = [read for raw in [*HONEST, *DECOYS] if (read := read_sku(raw)) is not None]
    for one, strategy in itertools.product(MACHINES.values(), Strategy):
        for part in parts_of(one, strategy) or []:
            found = find(part, region="us-central1", skus=skus)
            if not isinstance(found, str):
                uses.setdefault(found.description, set()).add((part.name, strategy))
    assert uses
    assert all(len(seen) == 1 for seen in uses.values()), uses


def test_machines_without_rules_have_no_price() -> None:
    assert parts_of(machine("a4-highgpu-8g"), Strategy.SPOT) is None
    assert fee_parts_of(machine("a4-highgpu-8g")) is None
    assert parts_of(machine("g4-standard-48"), Strategy.ON_DEMAND) is None


def test_a_sum_needs_every_part() -> None:
    parts = parts_of(machine("a2-highgpu-1g"), Strategy.SPOT)
    skus = [read for raw in HONEST if (read := read_sku(raw)) is not None]
    assert parts is not None
    assert sum_up(parts, region="us-central1", skus=skus) == pytest.approx(1.92768)
    assert sum_up(parts, region="us-east5", skus=skus) == "no SKU for its cores"


def test_spot_needs_spot_s_usage_type() -> None:
    mislabelled = [
        one if one["category"]["usageType"] != SPOT else sku(one["description"], 0.1)
        for one in HONEST
    ]
    assert table_of(*mislabelled).price("a2-highgpu-1g", "us-central1", Strategy.SPOT) is None


def test_a_refreshed_table_survives_the_disk(tmp_path: Path) -> None:
    table = table_of(*HONEST, fees=FEES)
    save_prices(table, home=tmp_path)
    again = load_prices(home=tmp_path)
    assert (again.prices, again.fees, again.title) == (table.prices, table.fees, SOURCE)
