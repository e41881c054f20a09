"""AdamW and its learning-rate schedule.

A model and the training settings flow in, an optimizer and a scheduler flow out. Only matrices
decay: gains, biases and embeddings keep their size. Clipping and stepping are the trainer's.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from saccade.config.schema import TrainingConfig


def decays(model: nn.Module) -> dict[str, bool]:
    """For each trainable parameter, whether weight decay applies to it."""
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    return {
        name: parameter.ndim >= 2 and id(parameter) not in embeddings
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def make_optimizer(model: nn.Module, *, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in the model's own order."""
    decaying = decays(model)
    named = dict(model.named_parameters())
    groups = [
        {
            "params": [named[name] for name, decay in decaying.items() if decay is wanted],
            "weight_decay": training.weight_decay if wanted else 0.0,
        }
        for wanted in (True, False)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        betas=(0.9, training.beta2),
    )


def learning_rate_factor(
    done: int, *, steps: int, warmup: int, schedule: str, floor: float = 0.0
) -> float:
    """The share of the peak rate that the step after `done` steps uses; it decays to `floor`."""
    if done < warmup:
        return (done + 1) / warmup
    progress = min(1.0, (done - warmup) / max(1, steps - warmup))
    if schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - (1 - floor) * progress if schedule == "linear" else 1.0


def make_schedule(
    optimizer: torch.optim.Optimizer, *, training: TrainingConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then the chosen decay towards its floor at the last step."""
    factor = partial(
        learning_rate_factor,
        steps=training.steps,
        warmup=math.ceil(training.warmup_ratio * training.steps),
        schedule=training.schedule,
        floor=training.lr_min_ratio,
    )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
