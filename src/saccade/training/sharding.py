"""FSDP2 for a frozen base: every process holds a share of it, the trained part is whole everywhere.

A module on its device goes in; its frozen layers come back sharded over all processes, gathered
one at a time when they are used. What is trained stays an ordinary tensor on every process, with
its gradients averaged once per step. So optimizer, clipping and checkpoints are those of one
process, and a run may continue with another number of processes or with DDP. Accelerate turns its
own FSDP on for accelerators only (not for several CPU processes) and would shard the trained part
too; hence `fully_shard` directly, under the Trainer's path for models that arrive sharded.
Left out: sharding what is trained.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from transformers.modeling_layers import GradientCheckpointingLayer

from saccade.config.errors import InputError


def shard_frozen(module: nn.Module, *, device: torch.device, methods: Iterable[str] = ()) -> None:
    """Shard the frozen parameters of `module` in place, layer by layer.

    `methods` are entered like `forward`: with what lies outside the layers gathered. A layer may
    hold trained parts (adapters), which stay whole. Raises InputError when no layer is frozen.
    """
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, GradientCheckpointingLayer)
        and not all(parameter.requires_grad for parameter in layer.parameters())
    ]
    if not layers:
        raise InputError(
            "training.parallel=fsdp shards a frozen base, and this recipe trains all of it"
            "\n  fix: use training.parallel=ddp"
        )
    module.to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    trained = {one for one in module.parameters() if one.requires_grad}
    for layer in reversed(layers):  # inner ones first
        fully_shard(layer, mesh=mesh, ignored_params=trained)
    fully_shard(module, mesh=mesh, ignored_params=trained)
    for name in methods:
        register_fsdp_forward_method(module, name)


@torch.no_grad()
def spread_from_first(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the first one's values of what is trained."""
    for parameter in parameters:
        if parameter.requires_grad:
            dist.broadcast(parameter.data, src=0)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of what is trained by their mean over processes, in one message.

    What no process's samples reached keeps no gradient, so that the optimizer leaves it alone.
    """
    trained = [one for one in parameters if one.requires_grad]
    device = trained[0].device
    reached = torch.tensor([one.grad is not None for one in trained], device=device).int()
    dist.all_reduce(reached)
    trained = [one for one, count in zip(trained, reached.tolist(), strict=True) if count]
    # a part that one process's samples did not reach still has to be counted there
    grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
    flat = torch.cat([grad.reshape(-1).float() for grad in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, mean in zip(trained, _split(flat, trained), strict=True):
        parameter.grad = mean.to(parameter.dtype)


def _split(flat: Tensor, like: list[nn.Parameter]) -> list[Tensor]:
    parts = flat.split([one.numel() for one in like])
    return [part.view_as(one) for part, one in zip(parts, like, strict=True)]
