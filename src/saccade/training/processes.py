"""What the processes of one training tell each other.

In goes one process's value, out come those of all, in order and the same on all; a training of one
process needs no process group. Left out: gradients, which the trainer's own library averages.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def everywhere(value: Any) -> list[Any]:
    """One value of each process, in order, the same on all."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
