"""What a job costs, whether it fits, and the comparison that earlier documents got wrong."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.cloud.findings import Level
from saccade.config.errors import InputError
from saccade.launch.compare import Comparison, Row, compare, markdown, market_line, selector_job
from saccade.launch.estimate import (
    DEFAULT_RISK,
    Estimate,
    estimate,
    hourly_cost,
    lost_hours_per_hour,
    max_hours,
)
from saccade.launch.fit import (
    disk_fit,
    dtype_fit,
    memory_fit,
    parameters_b,
    weights_gb,
    weights_note,
)
from saccade.launch.machines import Strategy, machine
from saccade.launch.prices import Price, Span, packaged_prices

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "prices.md"
SPOT, FLEX, ON_DEMAND = Strategy.SPOT, Strategy.FLEX_START, Strategy.ON_DEMAND
TABLE = packaged_prices()


def price_of(name: str, strategy: Strategy = SPOT, region: str = "us-central1") -> Price:
    found = TABLE.price(name, region, strategy)
    assert found is not None
    return found


def of(name: str, hours: float, strategy: Strategy = SPOT, *, replicas: int = 1) -> Estimate:
    return estimate(
        machine(name), price=price_of(name, strategy), prices=TABLE, hours=Span.exactly(hours),
        replicas=replicas,
    )  # fmt: skip


def comparison() -> Comparison:
    return compare(TABLE, job=selector_job())


def row(name: str, strategy: Strategy = SPOT, region: str = "us-central1") -> Row:
    return next(
        one
        for one in comparison().rows
        if (one.machine, one.strategy, one.region) == (name, strategy, region)
    )


def test_four_a100_for_three_and_a_half_hours_cost_more_than_one_for_twelve() -> None:
    one, four = row("a2-highgpu-1g"), row("a2-highgpu-4g")
    assert f"{one.machine_usd:.2f}" == "23.14"
    assert f"{four.machine_usd:.2f}" == "26.99"
    assert four.estimate.expected.total > one.estimate.expected.total


@pytest.mark.parametrize(
    ("name", "hours", "strategy", "usd"),
    [
        ("a2-highgpu-1g", 12, SPOT, 23.14),
        ("a2-highgpu-1g", 120, SPOT, 231.36),
        ("a2-highgpu-1g", 240, SPOT, 462.72),
        ("a2-highgpu-4g", 3.5, SPOT, 26.99),
        ("a2-ultragpu-8g", 3, SPOT, 66.24),
        ("a2-ultragpu-4g", 1, SPOT, 11.04),
        ("a2-ultragpu-8g", 1, SPOT, 22.08),
        ("a2-ultragpu-8g", 1, ON_DEMAND, 40.55),
    ],
)
def test_sums_that_were_wrong_elsewhere(
    name: str, hours: float, strategy: Strategy, usd: float
) -> None:
    assert of(name, hours, strategy).expected.vm == pytest.approx(usd, abs=0.006)


def test_four_gpus_are_never_counted_four_times_as_fast() -> None:
    hours = selector_job().hours
    alone, four = hours["a2-highgpu-1g"], hours["a2-highgpu-4g"]
    assert alone.expected / four.low < 4
    assert four.low < four.expected < four.high
    assert four.expected == pytest.approx(3.5)


def test_the_short_test_is_not_nine_cents() -> None:
    # five minutes of training also pay for boot and pull
    total = of("a2-highgpu-1g", 5 / 60, ON_DEMAND)
    assert total.expected.vm == pytest.approx(0.31, abs=0.01)
    assert total.expected.boot > total.expected.vm
    assert total.expected.total > 0.8


def test_an_estimate_is_the_sum_of_its_parts() -> None:
    total = of("a2-highgpu-1g", 12)
    parts = total.expected
    assert parts.vm == pytest.approx(12 * 1.928)
    billed = 12 + 8 / 60 + 12 * 0.05 * 13 / 60
    assert total.billed_hours.expected == pytest.approx(billed)
    assert parts.fee == pytest.approx(billed * 0.15 * 3.673385)
    assert parts.boot == pytest.approx(8 / 60 * 1.928)
    assert parts.preemption == pytest.approx(12 * 0.05 * 13 / 60 * 1.928)
    assert parts.disk == pytest.approx(billed * 100 * 0.1955 / 730)
    assert parts.storage == pytest.approx(10 * 30 * 24 / 730 * 0.02)
    assert parts.total == pytest.approx(sum(vars(parts).values()))
    assert total.preemptions.expected == pytest.approx(0.6)


@given(
    hours=st.floats(0.1, 500),
    name=st.sampled_from(["g2-standard-8", "a2-highgpu-4g", "a3-highgpu-8g"]),
    strategy=st.sampled_from(list(Strategy)),
    replicas=st.integers(1, 8),
)
def test_low_is_below_expected_is_below_high(
    hours: float, name: str, strategy: Strategy, replicas: int
) -> None:
    total = of(name, hours, strategy, replicas=replicas)
    assert total.low.total <= total.expected.total <= total.high.total
    assert total.low.vm == total.expected.vm == total.high.vm


@given(hours=st.floats(0.1, 200), replicas=st.integers(1, 8))
def test_replicas_multiply_everything_but_storage_without_preemption(
    hours: float, replicas: int
) -> None:
    one, many = (
        of("a2-highgpu-8g", hours, FLEX),
        of("a2-highgpu-8g", hours, FLEX, replicas=replicas),
    )
    storage = one.expected.storage
    assert many.expected.storage == storage
    assert many.expected.total - storage == pytest.approx(replicas * (one.expected.total - storage))


def test_only_spot_loses_work_and_more_so_with_replicas() -> None:
    assert of("a2-highgpu-1g", 12, FLEX).expected.preemption == 0
    assert of("a2-highgpu-1g", 12, ON_DEMAND).high.preemption == 0
    one = lost_hours_per_hour(SPOT, risk=DEFAULT_RISK)
    four = lost_hours_per_hour(SPOT, risk=DEFAULT_RISK, replicas=4)
    assert four.expected == pytest.approx(4 * one.expected)


def test_assumptions_are_stated_with_sources_and_dates() -> None:
    text = "\n".join(of("a2-highgpu-1g", 12).assumptions)
    assert "2026-07-30" in text and "list" in text
    assert "assumed; Google publishes none" in text
    assert "0.01 / 0.05 / 0.2 times per machine and hour" in text
    assert "10 min between checkpoints" in text
    assert "is not preempted" in "\n".join(of("a2-highgpu-1g", 12, FLEX).assumptions)


@given(budget=st.floats(1, 10_000), replicas=st.integers(1, 4))
def test_a_budget_holds_even_at_the_high_hourly_cost(budget: float, replicas: int) -> None:
    price = price_of("a2-highgpu-4g")
    hours = max_hours(budget, price=price, prices=TABLE, replicas=replicas)
    cost = hourly_cost(price, prices=TABLE, disk_gb=100, replicas=replicas)
    assert hours * cost.high == pytest.approx(budget)
    assert hours * cost.low <= hours * cost.expected <= budget * (1 + 1e-9)


def test_a_budget_must_be_above_zero_and_is_compared_with_the_high_end() -> None:
    with pytest.raises(InputError, match=r"launch.budget = 0: must be above 0\n  fix: "):
        max_hours(0, price=price_of("a2-highgpu-1g"), prices=TABLE)
    args = {"price": price_of("a2-highgpu-1g"), "prices": TABLE, "hours": Span.exactly(12)}
    one = machine("a2-highgpu-1g")
    assert estimate(one, **args, budget=50).within_budget is True
    assert estimate(one, **args, budget=33).within_budget is False
    assert estimate(one, **args).within_budget is None


def test_negative_hours_are_refused() -> None:
    with pytest.raises(InputError, match="hours must not be negative"):
        of("a2-highgpu-1g", -1)


# --- does it fit -------------------------------------------------------------------------------


def test_30b_a3b_needs_about_62_gb_not_30_or_40() -> None:
    billions = parameters_b("Qwen3-VL-30B-A3B-Instruct")
    assert billions is not None
    assert weights_gb(billions) == pytest.approx(62, abs=1)
    note = weights_note("Qwen/Qwen3-VL-30B-A3B-Instruct")
    assert "about 62 GB in bfloat16" in note
    assert "all experts lie in memory, the 3B active ones only save computation" in note
    fit = memory_fit(machine("a2-highgpu-1g"), parameters_b=billions)
    assert fit.level is Level.BLOCK and not fit.ok
    assert "62 GB in bfloat16" in fit.message
    assert memory_fit(machine("a2-ultragpu-1g"), parameters_b=billions).ok


def test_data_parallel_halves_nothing() -> None:
    one = memory_fit(machine("a2-highgpu-1g"), parameters_b=31.1)
    two = memory_fit(machine("a2-highgpu-2g"), parameters_b=31.1)
    assert two.need == one.need
    assert two.level is Level.BLOCK and "data parallel copies the model" in two.message
    split = memory_fit(machine("a2-highgpu-4g"), parameters_b=31.1, sharded=True)
    assert split.ok and split.need < one.need / 2


def test_the_selector_job_fits_one_a100() -> None:
    fit = memory_fit(
        machine("a2-highgpu-1g"), parameters_b=2.13, trainable_b=0.002, batch_size=2, tokens=1500
    )
    assert fit.level is Level.OK
    assert set(fit.parts) >= {"weights", "gradients", "optimizer", "activations (rough)"}


def test_training_everything_costs_eight_times_the_weights() -> None:
    fit = memory_fit(machine("a2-ultragpu-1g"), parameters_b=8.77, trainable_b=8.77)
    assert fit.level is Level.BLOCK
    state = fit.parts["gradients"] + fit.parts["optimizer"]
    assert state == pytest.approx(8 * fit.parts["weights"])


def test_a_fit_names_a_machine_that_would_do() -> None:
    fit = memory_fit(machine("g2-standard-8"), parameters_b=8.77, trainable_b=0.02, tokens=4096)
    assert fit.fix == "launch.machine=a2-highgpu-1g"
    finding = fit.finding()
    assert (finding.name, finding.level, finding.fix) == ("memory", fit.level, fit.fix)


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", "auto"])
def test_bf16_on_a_t4_is_blocked(dtype: str) -> None:
    fit = dtype_fit(machine("n1-standard-8-t4"), dtype=dtype)
    assert fit.level is Level.BLOCK
    assert "T4 16GB has no bfloat16" in fit.message
    assert "launch.machine=g2-standard-8" in fit.fix
    assert dtype_fit(machine("g2-standard-8"), dtype=dtype).ok


def test_float32_on_a_t4_is_allowed_and_nonsense_is_not() -> None:
    assert dtype_fit(machine("n1-standard-8-t4"), dtype="float32").ok
    with pytest.raises(InputError, match="expected one of"):
        dtype_fit(machine("g2-standard-8"), dtype="fp7")


def test_the_disk_holds_image_model_data_and_one_checkpoint_more() -> None:
    assert disk_fit(100, parameters_b=2.13, checkpoint_gb=0.1).ok
    fit = disk_fit(100, parameters_b=31.1, checkpoint_gb=1)
    assert fit.level is Level.WARN or fit.level is Level.BLOCK
    fit = disk_fit(100, parameters_b=31.1, checkpoint_gb=20)
    assert fit.level is Level.BLOCK
    assert fit.parts["checkpoints"] == 80
    assert fit.fix == "launch.disk_gb=200"
    assert disk_fit(200, parameters_b=31.1, checkpoint_gb=20).ok


# --- the comparison ----------------------------------------------------------------------------


def test_the_comparison_has_each_way_in_us_central1_and_the_cheapest_region() -> None:
    result = comparison()
    ways = {(one.machine, one.strategy) for one in result.rows}
    names = ("a2-highgpu-1g", "a2-highgpu-4g", "a2-ultragpu-1g")
    assert ways == {(name, way) for name in names for way in Strategy}
    for name, way in ways:
        regions = {
            one.region: one.cheapest
            for one in result.rows
            if (one.machine, one.strategy) == (name, way)
        }
        assert "us-central1" in regions and sum(regions.values()) == 1
    assert result.rows[0].region == "europe-west4"


def test_europe_west4_is_cheaper_than_us_central1_not_dearer() -> None:
    home, away = row("a2-highgpu-1g"), row("a2-highgpu-1g", region="europe-west4")
    assert away.price.usd_per_hour / home.price.usd_per_hour == pytest.approx(0.88, abs=0.005)


def test_every_row_is_dated_and_says_how_sure_it_is() -> None:
    for one in comparison().rows:
        assert one.price.fetched_at >= date(2025, 1, 1)
        inferred = one.strategy is FLEX
        assert (one.price.confidence == "inferred") is inferred
        assert one.estimate.low.total > one.machine_usd * 0.9


def test_the_market_line_is_dated() -> None:
    line = market_line(TABLE.market)
    assert "RunPod A100 80GB SXM, community 1.39 (2026-11-09)" in line
    assert "Lambda A100 40GB 1.99" in line and "HF Jobs" in line
    assert market_line(()) == ""


def test_the_guide_shows_exactly_this_comparison() -> None:
    """`saccade prices compare --markdown` writes the text between the marks."""
    text = GUIDE.read_text(encoding="utf-8")
    shown = text.split("<!-- compare -->\n")[1].split("<!-- /compare -->")[0]
    assert shown.strip() == markdown(comparison()).strip()
