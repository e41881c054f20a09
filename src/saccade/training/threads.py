"""How many CPU threads training may use: the cores nobody else is using.

A setting and, for a resumed run, the earlier number flow in; one number flows out. Two threads on
a busy two-core machine are several times slower than one, hence idle cores rather than all. The
sums of a matrix product depend on the thread count, so a resumed run keeps the number it started
with: bit-equal results matter more than one core.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores this process may run on, with the container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    try:
        quota, period = CPU_MAX.read_text("ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def idle_cores(*, load: float, cores: int) -> int:
    """Cores left over by what runs already, at least one."""
    return max(1, cores - round(load))


def choose_threads(setting: int, *, earlier: int | None) -> int:
    """The thread count: the setting, else the resumed run's, else the idle cores.

    OMP_NUM_THREADS caps the automatic choice.
    """
    if setting > 0:
        return setting
    if earlier is not None:
        return earlier
    threads = idle_cores(load=os.getloadavg()[0], cores=available_cores())
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, int(limit)) if limit.isdigit() and int(limit) > 0 else threads
