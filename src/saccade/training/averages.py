"""An exponential average of the trained weights, kept beside them.

    average = decay * average + (1 - decay) * weights, after every update

It starts at the first weights. The average flows out as named tensors for checkpoints, and into the
model for the length of a block. Buffers are not averaged. Left out: warm-up of the decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages of all parameters that are trained."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: one.detach().clone() for name, one in _trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights."""
        for name, now in _trained(model).items():
            if self.tensors[name].device != now.device:
                self.tensors[name] = self.tensors[name].to(now.device)
            self.tensors[name].lerp_(now, 1 - self.decay)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """The model computes with the average for the block; its weights come back after it."""
        trained = _trained(model)
        kept = {name: one.data for name, one in trained.items()}
        try:
            for name, one in trained.items():
                one.data = self.tensors[name].to(one.device)
            yield
        finally:
            for name, one in trained.items():
                one.data = kept[name]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a saved average."""
        for name, one in self.tensors.items():
            one.copy_(tensors[name])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}
