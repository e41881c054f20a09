"""The machine types a job may ask for: GPUs, memory, and how each may be rented on Vertex AI.

A machine's name flows in; its accelerator enum and count, bf16 support, strategies and quota
metric flow out. Users name the machine only, because accelerator and count follow from it (set
apart, they contradict each other: an 80 GB A100 is not `NVIDIA_TESLA_A100`). Left out: prices
(`prices.py`) and where a machine exists (`regions.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum
from types import MappingProxyType

from saccade.config.errors import InputError


class Strategy(StrEnum):
    """How a machine is rented."""

    SPOT = "spot"
    FLEX_START = "flex-start"
    ON_DEMAND = "on-demand"


VERTEX_STRATEGIES: Mapping[Strategy, str] = MappingProxyType(
    {Strategy.SPOT: "SPOT", Strategy.FLEX_START: "FLEX_START", Strategy.ON_DEMAND: "STANDARD"}
)
"""Our strategy -> the enum of a Vertex job's `scheduling.strategy`."""

ALIKE = 0.6
"""Likeness from which on a wrong name is taken for a typing mistake."""

ALL = (Strategy.SPOT, Strategy.FLEX_START, Strategy.ON_DEMAND)
WITHOUT_FLEX = (Strategy.SPOT, Strategy.ON_DEMAND)
"""Flex-start exists for L4, A100, H100, H200 and B200 only."""
WITHOUT_ON_DEMAND = (Strategy.SPOT, Strategy.FLEX_START)
"""a3-highgpu-1g, -2g and -4g are never sold on demand."""


@dataclass(frozen=True)
class Gpu:
    """One model of GPU."""

    name: str
    """Name for people, for example `A100 40GB`."""
    gib: float
    """Memory of one GPU, in GiB as marketed."""
    accelerator_type: str
    """Vertex AI's enum."""
    quota: str
    """The part of the quota metric's name that says which GPU."""
    bf16: bool = True


T4 = Gpu("T4 16GB", 16, "NVIDIA_TESLA_T4", "t4", bf16=False)
L4 = Gpu("L4 24GB", 24, "NVIDIA_L4", "l4")
RTX_PRO_6000 = Gpu("RTX PRO 6000 96GB", 96, "NVIDIA_RTX_PRO_6000", "rtx_pro_6000")
A100_40 = Gpu("A100 40GB", 40, "NVIDIA_TESLA_A100", "a100")
A100_80 = Gpu("A100 80GB", 80, "NVIDIA_A100_80GB", "a100_80gb")
H100 = Gpu("H100 80GB", 80, "NVIDIA_H100_80GB", "h100")
H100_MEGA = Gpu("H100 MEGA 80GB", 80, "NVIDIA_H100_MEGA_80GB", "h100_mega")
H200 = Gpu("H200 141GB", 141, "NVIDIA_H200_141GB", "h200")
B200 = Gpu("B200 180GB", 180, "NVIDIA_B200", "b200")


@dataclass(frozen=True)
class Machine:
    """One machine type with the GPUs that belong to it."""

    name: str
    """What users write; equal to `machine_type` unless GPUs are attached to a general machine."""
    machine_type: str
    """What Google calls it in `machineSpec.machineType`."""
    gpu: str | None
    gpus: int
    gpu_gib: float
    """Memory of each GPU, in GiB."""
    vcpus: int
    memory_gib: float
    accelerator_type: str | None
    """Vertex AI's accelerator enum; None without GPUs."""
    bf16: bool
    """Whether the hardware computes in bfloat16; true for CPUs."""
    strategies: tuple[Strategy, ...]
    quota_part: str | None
    """Which GPU the quota metric names; None without GPUs."""
    local_ssd_gib: int = 0
    """Local SSD that is part of the machine and of its price."""

    @property
    def family(self) -> str:
        """The machine family as SKUs name it, for example `A2`."""
        return self.machine_type.partition("-")[0].upper()

    def quota_name(self, strategy: Strategy) -> str:
        """Name the Vertex quota metric a job of this strategy draws on (per region)."""
        if self.quota_part is None:
            # one meter for N1 and E2, whatever the strategy
            return "custom_model_training_cpus"
        # Flex-start draws on the preemptible quota, as Spot does.
        middle = "" if strategy is Strategy.ON_DEMAND else "preemptible_"
        return f"custom_model_training_{middle}nvidia_{self.quota_part}_gpus"

    def quota_units(self) -> int:
        """How much of that quota one replica takes: its GPUs, or its vCPUs without GPUs."""
        return self.gpus or self.vcpus

    def machine_spec(self) -> dict[str, object]:
        """Write Vertex AI's `machineSpec`."""
        spec: dict[str, object] = {"machineType": self.machine_type}
        if self.accelerator_type is not None:
            spec |= {"acceleratorType": self.accelerator_type, "acceleratorCount": self.gpus}
        return spec


def _gpu(
    machine_type: str,
    gpu: Gpu,
    gpus: int,
    *,
    vcpus: int,
    gib: float,
    strategies: tuple[Strategy, ...] = ALL,
    ssd_gib: int = 0,
    suffix: str = "",
) -> Machine:
    return Machine(
        name=machine_type + suffix,
        machine_type=machine_type,
        gpu=gpu.name,
        gpus=gpus,
        gpu_gib=gpu.gib,
        vcpus=vcpus,
        memory_gib=gib,
        accelerator_type=gpu.accelerator_type,
        bf16=gpu.bf16,
        strategies=strategies,
        quota_part=gpu.quota,
        local_ssd_gib=ssd_gib,
    )


def _cpu(name: str, *, vcpus: int, gib: float) -> Machine:
    return Machine(
        name=name,
        machine_type=name,
        gpu=None,
        gpus=0,
        gpu_gib=0.0,
        vcpus=vcpus,
        memory_gib=gib,
        accelerator_type=None,
        bf16=True,
        strategies=WITHOUT_FLEX,
        quota_part=None,
    )


def _table() -> dict[str, Machine]:
    rows = [
        _cpu("n1-standard-4", vcpus=4, gib=15),
        _cpu("n1-standard-8", vcpus=8, gib=30),
        _cpu("e2-standard-4", vcpus=4, gib=16),
        _cpu("e2-standard-8", vcpus=8, gib=32),
        _gpu("n1-standard-8", T4, 1, vcpus=8, gib=30, strategies=WITHOUT_FLEX, suffix="-t4"),
        _gpu("n1-standard-16", T4, 2, vcpus=16, gib=60, strategies=WITHOUT_FLEX, suffix="-2t4"),
        _gpu("n1-standard-32", T4, 4, vcpus=32, gib=120, strategies=WITHOUT_FLEX, suffix="-4t4"),
        _gpu("g2-standard-8", L4, 1, vcpus=8, gib=32),
        _gpu("g2-standard-12", L4, 1, vcpus=12, gib=48),
        _gpu("g2-standard-24", L4, 2, vcpus=24, gib=96),
        _gpu("g2-standard-48", L4, 4, vcpus=48, gib=192),
        _gpu("g2-standard-96", L4, 8, vcpus=96, gib=384),
        _gpu("g4-standard-48", RTX_PRO_6000, 1, vcpus=48, gib=180, strategies=WITHOUT_FLEX),
        *(
            _gpu(f"a2-highgpu-{n}g", A100_40, n, vcpus=12 * n, gib=85 * n)
            for n in (1, 2, 4, 8)
        ),
        *(
            _gpu(f"a2-ultragpu-{n}g", A100_80, n, vcpus=12 * n, gib=170 * n, ssd_gib=375 * n)
            for n in (1, 2, 4, 8)
        ),
        *(
            _gpu(f"a3-highgpu-{n}g", H100, n, vcpus=26 * n, gib=234 * n, ssd_gib=750 * n,
                 strategies=WITHOUT_ON_DEMAND if n < 8 else ALL)
            for n in (1, 2, 4, 8)
        ),
        _gpu("a3-megagpu-8g", H100_MEGA, 8, vcpus=208, gib=1872, ssd_gib=6000),
        _gpu("a3-ultragpu-8g", H200, 8, vcpus=224, gib=2952, ssd_gib=12000),
        _gpu("a4-highgpu-8g", B200, 8, vcpus=224, gib=3968, ssd_gib=12000),
    ]  # fmt: skip
    return {row.name: row for row in rows}


MACHINES: Mapping[str, Machine] = MappingProxyType(_table())
"""Every machine type that may be asked for, by name, GPUs and then size ascending."""


def machine(name: str) -> Machine:
    """Return a machine by its name; raises InputError with the nearest name."""
    found = MACHINES.get(name)
    if found is not None:
        return found
    likeness = {known: SequenceMatcher(None, name.lower(), known).ratio() for known in MACHINES}
    near = max(likeness, key=likeness.__getitem__)  # of equals the first, which is the smallest
    if likeness[near] < ALIKE:
        raise InputError(
            f"launch.machine = {name}: no such machine type\n  fix: saccade prices  # lists them"
        )
    raise InputError(f"launch.machine = {name}: did you mean {near}?\n  fix: launch.machine={near}")
