"""A learned vector per puzzle, in front of its cells, updated by the sign of its gradient.

Puzzle numbers flow in, prefix positions flow out. The table is large (one row per augmented
variant of a task) and a step touches few of its rows, so it is no ordinary parameter: the rows in
use are handed out as leaves, their gradients are collected, and `SignDescent` moves only them:

    row = row * (1 - lr * decay) - lr * sign(gradient)

Gradients of a row that several slots use are added up first, over micro-batches and processes. The
table is a buffer, so it is saved with the weights. Left out: momentum, of which there is none.

Shapes: B slots, P prefix positions, D width, N puzzles.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class PuzzleEmbedding(nn.Module):
    """Rows of a table as prefix positions; starts at zero, as published."""

    def __init__(self, puzzles: int, *, prefix: int, width: int) -> None:
        super().__init__()
        self.prefix, self.width = prefix, width
        self.table_ND: Tensor
        self.register_buffer("table_ND", torch.zeros(puzzles, width))
        self.waiting: list[tuple[Tensor, Tensor]] = []
        """Puzzle numbers and gradients since the last update."""

    def forward(self, puzzles_B: Tensor) -> Tensor:
        """[B, P, D]: the row, then zeros up to P positions."""
        rows_BD = self.table_ND[puzzles_B]
        if torch.is_grad_enabled() and self.training:
            rows_BD.requires_grad_()
            rows_BD.register_hook(lambda gradient: self._wait(puzzles_B, gradient))
        rest = rows_BD.new_zeros(len(puzzles_B), self.prefix - 1, self.width)
        return torch.cat((rows_BD[:, None], rest), dim=1)

    def _wait(self, puzzles_B: Tensor, gradient_BD: Tensor) -> None:
        self.waiting.append((puzzles_B.detach(), gradient_BD.detach()))


class SignDescent:
    """Moves the rows of a puzzle embedding that were used since the last step."""

    def __init__(self, embedding: PuzzleEmbedding, *, lr: float, weight_decay: float) -> None:
        self.embedding, self.lr, self.weight_decay = embedding, lr, weight_decay

    @torch.no_grad()
    def step(self, *, factor: float = 1.0) -> None:
        """Update with the learning rate times `factor` (the schedule's)."""
        waiting, self.embedding.waiting = self.embedding.waiting, []
        used = _everywhere(waiting)
        if not used:
            return
        table_ND, lr = self.embedding.table_ND, self.lr * factor
        puzzles = torch.cat([one for one, _ in used]).to(table_ND.device)
        gradients = torch.cat([one for _, one in used]).to(table_ND)
        rows, place = puzzles.unique(return_inverse=True)
        total_RD = gradients.new_zeros(len(rows), gradients.shape[1])
        total_RD.index_add_(0, place, gradients)
        kept_RD = table_ND[rows] * (1 - lr * self.weight_decay)
        table_ND[rows] = kept_RD - lr * total_RD.sign()


def _everywhere(waiting: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """What waits on all processes, in the same order on each."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return waiting
    gathered: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, [(a.cpu(), b.cpu()) for a, b in waiting])
    return [pair for part in gathered for pair in part]
