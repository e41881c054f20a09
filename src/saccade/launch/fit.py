"""Does the model fit: into the GPUs' memory, onto the disk, and into the number format.

A machine and what is trained (parameters, type, how much is frozen) flow in; a `Fit` with its
parts, a level (ok, warn, block) and a sentence flows out. These are sums of known tensors plus a
rough guess of activations, meant to stop a launch that cannot work. Left out: measured memory
(`saccade train --plan` on the machine itself).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from saccade.cloud.findings import Finding, Level
from saccade.config.errors import InputError
from saccade.launch.machines import MACHINES, Machine

BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
GB = 1e9
GIB = 2.0**30
RESERVED_GIB = 1.5
"""CUDA context, kernels and fragmentation, per GPU."""
TIGHT = 0.9
"""Share of the memory from which on a fit is called tight."""

MODELS_B: Mapping[str, float] = {
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-4B-Instruct": 4.44,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
    "Qwen/Qwen3-VL-30B-A3B-Instruct": 31.1,
    "Qwen/Qwen3-VL-32B-Instruct": 33.4,
}
"""Model -> billions of parameters, vision tower included, experts all counted."""

ACTIVE = re.compile(r"-A(\d+(?:\.\d+)?)B\b", re.IGNORECASE)
"""How the name of a mixture of experts says its active parameters, for example 30B-A3B."""


@dataclass(frozen=True)
class Fit:
    """The answer to one question of fit."""

    name: str
    level: Level
    have: float
    """GiB (memory) or GB (disk) there are."""
    need: float
    message: str
    fix: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the launch may go on."""
        return self.level is not Level.BLOCK

    def finding(self) -> Finding:
        """Say the same as the checks of a launch do."""
        return Finding(
            name=self.name,
            level=self.level,
            message=self.message,
            have=round(self.have, 1),
            need=round(self.need, 1),
            fix=self.fix,
        )


def parameters_b(model: str) -> float | None:
    """Return a known model's billions of parameters; None for a folder or an unknown one."""
    for name, billions in MODELS_B.items():
        if model.lower() in (name.lower(), name.split("/")[1].lower()):
            return billions
    return None


def weights_note(model: str, *, dtype: str = "bfloat16") -> str:
    """Say in one sentence how large a known model's weights are; empty for an unknown one."""
    billions = parameters_b(model)
    if billions is None:
        return ""
    text = f"{model}: {billions:g}B parameters, about {weights_gb(billions, dtype=dtype):.0f} GB"
    active = ACTIVE.search(model)
    if active is None:
        return f"{text} in {dtype}"
    return (
        f"{text} in {dtype}; all experts lie in memory, "
        f"the {active.group(1)}B active ones only save computation"
    )


def weights_gb(billions: float, *, dtype: str = "bfloat16") -> float:
    """Return the size of the weights in GB (10^9 bytes)."""
    return billions * _bytes(dtype)


def memory_fit(
    machine: Machine,
    *,
    parameters_b: float,
    dtype: str = "bfloat16",
    trainable_b: float = 0.0,
    sharded: bool = False,
    batch_size: int = 1,
    tokens: int = 2048,
    width: int = 2048,
    layers: int = 28,
    recompute: bool = False,
    replicas: int = 1,
) -> Fit:
    """Compare the memory of one GPU with weights, training state and a guess of activations.

    `trainable_b` counts only what gets gradients (a selector or LoRA; all for full training): each
    such parameter costs 4 bytes of gradient, 8 of Adam and 4 of master copy. Data parallel copies
    everything to each GPU; only `sharded` (FSDP) splits it.
    """
    if not machine.gpus:
        return Fit(
            "memory", Level.OK, machine.memory_gib, 0.0, "no GPU: host memory is not checked"
        )
    ways = machine.gpus * replicas if sharded else 1
    # a frozen language model still carries activations for the gradients that pass through it
    per_layer = 2 if recompute else 34
    activations = batch_size * tokens * width * layers * per_layer * 1.0
    parts = {
        "weights": weights_gb(parameters_b, dtype=dtype) * GB / GIB / ways,
        "gradients": trainable_b * 4 * GB / GIB / ways,
        "optimizer": trainable_b * 12 * GB / GIB / ways,
        "activations (rough)": activations / GIB,
        "reserved": RESERVED_GIB,
    }
    need, have = sum(parts.values()), machine.gpu_gib
    message = (
        f"{parameters_b:g}B parameters are {weights_gb(parameters_b, dtype=dtype):.0f} GB in "
        f"{dtype}; about {need:.0f} GiB per GPU needed, {machine.gpu} has {have:.0f}"
    )
    if need <= have * TIGHT:
        return Fit("memory", Level.OK, have, need, message, parts=parts)
    if not sharded and machine.gpus > 1:
        message += f"; data parallel copies the model to all {machine.gpus} GPUs, it halves nothing"
    level = Level.WARN if need <= have else Level.BLOCK
    return Fit("memory", level, have, need, message, _bigger(machine, need), parts)


def disk_fit(
    disk_gb: float,
    *,
    parameters_b: float,
    dtype: str = "bfloat16",
    image_gb: float = 15.0,
    data_gb: float = 0.0,
    checkpoint_gb: float = 0.0,
    kept_checkpoints: int = 3,
) -> Fit:
    """Compare the boot disk with image, model files, data and checkpoints kept at once."""
    parts = {
        "image and system": 2 * image_gb,  # layers are unpacked beside their download
        "model": weights_gb(parameters_b, dtype=dtype),
        "data": data_gb,
        # one more is written aside before the oldest goes
        "checkpoints": checkpoint_gb * (kept_checkpoints + 1),
    }
    need = sum(parts.values())
    message = f"about {need:.0f} GB of disk needed, {disk_gb:g} GB there"
    if need <= disk_gb * TIGHT:
        return Fit("disk", Level.OK, disk_gb, need, message, parts=parts)
    level = Level.WARN if need <= disk_gb else Level.BLOCK
    ask = int(-(-need / TIGHT // 50) * 50)
    return Fit("disk", level, disk_gb, need, message, f"launch.disk_gb={ask}", parts)


def dtype_fit(machine: Machine, *, dtype: str) -> Fit:
    """Refuse bfloat16 on hardware that has none (T4); `auto` means bfloat16 on every GPU."""
    wanted = {"auto": "bfloat16", "bf16": "bfloat16", "fp32": "float32"}.get(dtype, dtype)
    _bytes(wanted)
    if wanted != "bfloat16" or machine.bf16:
        return Fit("dtype", Level.OK, 1, 1, f"{machine.name} can compute in {wanted}")
    return Fit(
        "dtype", Level.BLOCK, 0, 1,
        f"{machine.name}: {machine.gpu} has no bfloat16, so training in it fails or crawls",
        "launch.machine=g2-standard-8  # or model.dtype=float32 training.precision=fp32",
    )  # fmt: skip


def _bigger(machine: Machine, need_gib: float) -> str:
    able = [
        other
        for other in MACHINES.values()
        if other.gpus == machine.gpus and other.gpu_gib * TIGHT >= need_gib and other.bf16
    ]
    if able:
        return f"launch.machine={min(able, key=lambda other: other.gpu_gib).name}"
    return "shard the model (FSDP) over several GPUs, or train fewer parameters"


def _bytes(dtype: str) -> int:
    if dtype not in BYTES:
        raise InputError(f"dtype = {dtype}: expected one of {', '.join(BYTES)}")
    return BYTES[dtype]
