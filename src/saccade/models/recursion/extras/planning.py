"""Latent planning: think along several paths, then mix where they lead.

The state after an answer flows in, a revised answer flows out:

    p_i = RMS(y + direction_i + y A_i)          K starts, A_i of low rank
    p_i = f(p_i + z)   `depth` times            the network itself walks each path
    w   = softmax_i(v . mean over positions of p_i)
    y   = RMS(y + sigmoid(g) * (sum_i w_i p_i) W)

The mixture and the gate learn. Nothing is fed back as a token: that is continuous thought, and a
recipe of its own. Left out: dropping paths.

Shapes: B slots, S positions, D width, K paths, R rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.blocks import Linear, rms_norm, truncated_normal_
from saccade.models.recursion.core import Extra, State

RANK = 8
GATE = -1.0
"""The mixture starts as a quarter of a vote."""


class LatentPlanning(Extra):
    """Several latent paths and their learned mixture."""

    def __init__(self, config: RecursionConfig) -> None:
        super().__init__()
        width, paths = config.width, config.planning.paths
        self.paths, self.depth = paths, config.planning.depth
        self.directions = nn.Parameter(truncated_normal_(torch.empty(paths, width), std=1.0))
        self.turn_in = nn.Parameter(
            truncated_normal_(torch.empty(paths, width, RANK), std=width**-0.5)
        )
        self.turn_out = nn.Parameter(
            truncated_normal_(torch.empty(paths, RANK, width), std=RANK**-0.5)
        )
        self.judge = Linear(width, 1)
        self.out = Linear(width, width)
        self.gate = nn.Parameter(torch.tensor(GATE))

    def revise(self, state: State, *, update: Callable[[Tensor], Tensor]) -> State:
        """Walk all paths as one batch, then mix."""
        y, z = state.y, state.z
        turned_KBSD = torch.einsum("bsd,kdr,kre->kbse", y, self.turn_in, self.turn_out)
        paths = rms_norm(y + self.directions[:, None, None] + turned_KBSD).flatten(0, 1)
        along = z.repeat(self.paths, 1, 1)
        for _ in range(self.depth):
            paths = update(paths + along)
        paths_KBSD = paths.unflatten(0, (self.paths, -1))
        share_KB = self.judge(paths_KBSD.mean(2))[..., 0].softmax(0)
        mixed_BSD = torch.einsum("kb,kbsd->bsd", share_KB, paths_KBSD)
        return State(rms_norm(y + self.gate.sigmoid() * self.out(mixed_BSD)), z)
