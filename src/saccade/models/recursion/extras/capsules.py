"""Capsules as part of the question: vectors of a picture in front of the cells.

Vectors of a frozen encoder flow in [B, C, E] (`saccade data build shards`), positions flow out
[B, C, D], which the network reads like any other. What is asked for are symbols, so every capsule
sample has a target. Left out: pooling and encoding, which are done once, before training.

    position_k = RMS(capsule_k) W + place_k
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saccade.models.recursion.blocks import Linear, rms_norm, truncated_normal_


class CapsuleInput(nn.Module):
    """Projects capsules to the width of the recursion and tells them apart by place."""

    def __init__(self, capsules: int, capsule_width: int, *, width: int) -> None:
        super().__init__()
        self.project = Linear(capsule_width, width)
        # embeddings are scaled by sqrt(width) later, so both parts start at 1/sqrt(width)
        self.project.weight.data.mul_(width**-0.5)
        self.places = nn.Parameter(truncated_normal_(torch.empty(capsules, width), std=width**-0.5))

    def forward(self, capsules_BCE: Tensor) -> Tensor:
        read_BCE = rms_norm(capsules_BCE.to(self.project.weight.dtype))
        return self.project(read_BCE) + self.places
