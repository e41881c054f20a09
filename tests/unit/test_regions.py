"""Ranking: price x existence x quota, each exclusion with its reason and its cure."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from saccade.launch.machines import Machine, Strategy, machine
from saccade.launch.prices import packaged_prices
from saccade.launch.regions import (
    EXISTS,
    LOCATIONS,
    VERTEX_REGIONS,
    Candidate,
    exists,
    quota_key,
    quotas_of,
    rank,
    regions_of,
)

SPOT, FLEX, ON_DEMAND = Strategy.SPOT, Strategy.FLEX_START, Strategy.ON_DEMAND
A100 = machine("a2-highgpu-1g")


def ranked(
    one: Machine = A100,
    *strategies: Strategy,
    quotas: dict[str, int | None] | None = None,
    allowed: list[str] | None = None,
    replicas: int = 1,
    store_region: str | None = None,
) -> list[Candidate]:
    return rank(
        one, strategies=strategies or [SPOT], prices=packaged_prices(), quotas=quotas or {},
        allowed=allowed, replicas=replicas, store_region=store_region,
    )  # fmt: skip


def at(found: list[Candidate], region: str, strategy: Strategy = SPOT) -> Candidate:
    return next(one for one in found if (one.region, one.strategy) == (region, strategy))


def test_the_cheapest_comes_first_and_us_central1_is_third() -> None:
    usable = [one.region for one in ranked() if one.usable]
    assert usable == ["europe-west4", "us-west4", "us-central1"]


def test_the_80_gb_a100_is_cheapest_in_us_east5() -> None:
    first = ranked(machine("a2-ultragpu-1g"))[0]
    assert (first.region, first.usd_per_hour) == ("us-east5", 1.778)
    assert (first.usd_per_hour or 0) < 1.928  # less than the 40 GB one in us-central1


def test_spot_flex_start_and_on_demand_are_compared_with_each_other() -> None:
    found = [one for one in ranked(A100, *Strategy, allowed=["us-central1"]) if one.usable]
    assert [one.strategy for one in found] == [SPOT, FLEX, ON_DEMAND]
    # for the H100 flex-start is expected to be cheaper than Spot
    h100 = machine("a3-highgpu-8g")
    found = [one for one in ranked(h100, *Strategy, allowed=["us-central1"]) if one.usable]
    assert [one.strategy for one in found] == [FLEX, SPOT, ON_DEMAND]


def test_the_order_counts_the_fee_and_the_work_lost_on_spot() -> None:
    spot, flex = (at(ranked(A100, SPOT, FLEX), "us-central1", way) for way in (SPOT, FLEX))
    assert spot.usd_per_useful_hour is not None and flex.usd_per_useful_hour is not None
    fee = 0.15 * 3.673385
    assert flex.usd_per_useful_hour == pytest.approx(2.020 + fee)
    lost = 0.05 * (5 + 8) / 60
    assert spot.usd_per_useful_hour == pytest.approx((1.928 + fee) * (1 + lost))


def test_unknown_quota_is_not_zero() -> None:
    one = at(ranked(), "us-central1")
    assert one.usable and one.quota is None
    assert "quota unknown" in one.reason
    key = quota_key("us-central1", A100, SPOT)
    assert at(ranked(quotas={key: None}), "us-central1").usable


def test_too_little_quota_excludes_and_names_have_need_and_the_command() -> None:
    key = quota_key("us-central1", A100, SPOT)
    one = at(ranked(quotas={key: 0}), "us-central1")
    assert not one.usable
    metric = "custom_model_training_preemptible_nvidia_a100_gpus"
    assert one.reason == f"quota {metric} in us-central1: have 0, need 1"
    assert one.fix.startswith("saccade cloud setup --only quota")
    assert at(ranked(quotas={key: 1}), "us-central1").usable
    assert at(ranked(quotas={key: -1}), "us-central1").usable  # -1: without limit


def test_replicas_multiply_the_need() -> None:
    four = machine("a2-highgpu-4g")
    key = quota_key("us-central1", four, SPOT)
    assert at(ranked(four, quotas={key: 8}, replicas=2), "us-central1").usable
    one = at(ranked(four, quotas={key: 7}, replicas=2), "us-central1")
    assert "have 7, need 8" in one.reason


def test_on_demand_quota_is_another_quota() -> None:
    quotas: dict[str, int | None] = {quota_key("us-central1", A100, SPOT): 0}
    found = ranked(A100, *Strategy, quotas=quotas)
    assert not at(found, "us-central1", SPOT).usable
    assert not at(found, "us-central1", FLEX).usable  # flex-start takes the same quota
    assert at(found, "us-central1", ON_DEMAND).usable


def test_a_region_that_was_not_permitted_says_so() -> None:
    found = ranked(allowed=["us-central1"])
    assert [one.region for one in found if one.usable] == ["us-central1"]
    one = at(found, "europe-west4")
    assert one.reason == "not among launch.regions"
    assert one.fix == "launch.regions=[us-central1,europe-west4]"


def test_a_permitted_region_without_the_machine_is_explained() -> None:
    one = at(ranked(machine("a2-ultragpu-1g"), allowed=["us-west4"]), "us-west4")
    assert not one.usable
    assert one.reason.startswith("us-west4 has no a2-ultragpu-1g; it is known in asia-southeast1")
    one = at(ranked(allowed=["moon-east1"]), "moon-east1")
    assert one.reason == "Vertex AI has no region moon-east1"


def test_a_machine_not_rented_that_way_is_explained() -> None:
    one = at(ranked(machine("a3-highgpu-1g"), ON_DEMAND), "us-central1", ON_DEMAND)
    assert one.reason == "a3-highgpu-1g is not rented on-demand, only spot, flex-start"
    assert one.fix == "launch.strategy=spot"


def test_a_region_without_a_price_is_excluded_and_says_how_to_get_one() -> None:
    one = at(ranked(), "us-east1")
    assert (one.usable, one.reason, one.fix) == (False, "no price known", "saccade prices refresh")


def test_every_excluded_candidate_has_a_reason_and_stands_last() -> None:
    found = ranked(A100, *Strategy, quotas={quota_key("us-west4", A100, SPOT): 0})
    flags = [one.usable for one in found]
    assert flags == sorted(flags, reverse=True)
    assert all(one.reason for one in found)
    usable = [one.usd_per_useful_hour for one in found if one.usable]
    assert usable == sorted(usable, key=lambda cost: cost or 0)


def test_checkpoints_in_another_region_are_warned_about() -> None:
    found = ranked(store_region="us-central1")
    assert "checkpoints cross regions (us-central1)" in at(found, "europe-west4").reason
    assert "cross" not in at(found, "us-central1").reason


def test_where_the_a2_machines_exist() -> None:
    assert regions_of(machine("a2-ultragpu-8g")) == [
        "asia-southeast1", "europe-west4", "us-central1", "us-east4", "us-east5",
    ]  # fmt: skip
    assert len(regions_of(A100)) == 10
    assert not exists(A100, "us-east5")
    assert all(regions <= VERTEX_REGIONS for regions in EXISTS.values())


def test_places_have_their_right_names() -> None:
    assert LOCATIONS["us-east1"] == "South Carolina"
    assert LOCATIONS["us-east4"] == "Northern Virginia"


def test_what_compute_engine_listed_decides_once_it_is_known() -> None:
    seen = {"a2-highgpu-1g": frozenset({"us-east5", "nowhere1"})}
    assert regions_of(A100, seen=seen) == ["us-east5"]
    assert regions_of(machine("a2-ultragpu-1g"), seen=seen) == []


def test_quotas_are_picked_out_of_all_limits_by_metric_and_region() -> None:
    @dataclass(frozen=True)
    class Limit:
        values: dict[str, int]

        def limit(self, region: str) -> int | None:
            return self.values.get(region)

    limits = {A100.quota_name(SPOT): Limit({"us-central1": 4})}
    found = quotas_of(A100, limits=limits, strategies=[SPOT, ON_DEMAND])
    assert found[quota_key("us-central1", A100, SPOT)] == 4
    assert found[quota_key("us-west1", A100, SPOT)] is None
    assert found[quota_key("us-central1", A100, ON_DEMAND)] is None
