"""The table of machines: one name says everything about a machine."""

from __future__ import annotations

import pytest

from saccade.config.errors import InputError
from saccade.launch.machines import MACHINES, VERTEX_STRATEGIES, Strategy, machine

SPOT, FLEX, ON_DEMAND = Strategy.SPOT, Strategy.FLEX_START, Strategy.ON_DEMAND


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_is_complete(name: str) -> None:
    one = MACHINES[name]
    assert one.name == name
    assert one.vcpus > 0 and one.memory_gib > 0 and one.strategies
    assert (one.gpus > 0) == (one.gpu is not None) == (one.accelerator_type is not None)
    assert (one.gpu_gib > 0) == (one.gpus > 0)
    spec = one.machine_spec()
    assert spec["machineType"] == one.machine_type
    assert spec.get("acceleratorCount", 0) == one.gpus
    assert name == one.machine_type or name.startswith(one.machine_type + "-")


@pytest.mark.parametrize(
    ("name", "accelerator", "count"),
    [
        ("n1-standard-8-t4", "NVIDIA_TESLA_T4", 1),
        ("g2-standard-48", "NVIDIA_L4", 4),
        ("a2-highgpu-4g", "NVIDIA_TESLA_A100", 4),
        ("a2-ultragpu-1g", "NVIDIA_A100_80GB", 1),
        ("a3-highgpu-8g", "NVIDIA_H100_80GB", 8),
    ],
)
def test_accelerator_and_count_follow_from_the_machine(
    name: str, accelerator: str, count: int
) -> None:
    assert (machine(name).accelerator_type, machine(name).gpus) == (accelerator, count)


def test_the_80_gb_a100_is_not_the_40_gb_one() -> None:
    small, large = machine("a2-highgpu-1g"), machine("a2-ultragpu-1g")
    assert small.accelerator_type != large.accelerator_type
    assert small.quota_name(SPOT) != large.quota_name(SPOT)
    assert (small.gpu_gib, large.gpu_gib) == (40, 80)


def test_only_the_t4_has_no_bf16() -> None:
    assert {one.gpu for one in MACHINES.values() if not one.bf16} == {"T4 16GB"}


def test_spot_and_flex_start_draw_on_the_preemptible_quota() -> None:
    one = machine("a2-highgpu-4g")
    assert one.quota_name(ON_DEMAND) == "custom_model_training_nvidia_a100_gpus"
    assert one.quota_name(SPOT) == "custom_model_training_preemptible_nvidia_a100_gpus"
    assert one.quota_name(FLEX) == one.quota_name(SPOT)
    assert one.quota_units() == 4


def test_a_machine_without_gpus_counts_its_cpus() -> None:
    one = machine("n1-standard-4")
    assert (one.quota_name(SPOT), one.quota_units()) == ("custom_model_training_cpus", 4)


def test_small_h100_machines_are_not_sold_on_demand() -> None:
    for size in (1, 2, 4):
        assert machine(f"a3-highgpu-{size}g").strategies == (SPOT, FLEX)
    assert ON_DEMAND in machine("a3-highgpu-8g").strategies


def test_flex_start_exists_for_newer_gpus_only() -> None:
    assert FLEX not in machine("n1-standard-8-t4").strategies
    assert FLEX not in machine("e2-standard-4").strategies
    assert FLEX in machine("g2-standard-8").strategies


def test_each_strategy_has_vertex_s_enum() -> None:
    assert VERTEX_STRATEGIES == {SPOT: "SPOT", FLEX: "FLEX_START", ON_DEMAND: "STANDARD"}


def test_a_wrong_name_gets_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"did you mean a2-highgpu-1g\?\n  fix: launch.machine="):
        machine("a2-higpu")
    with pytest.raises(InputError, match="no such machine type\n  fix: saccade prices"):
        machine("tpu")
