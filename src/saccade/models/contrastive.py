"""The contrastive loss of matching pictures and captions, however a batch is cut.

Vectors of N pairs flow in, one loss per pair flows out: symmetric InfoNCE with a learned
temperature (Radford et al. 2021, arXiv 2103.00020). Every pair's negatives are all other pairs of
the optimizer step, over micro-batches and processes: their vectors are computed beforehand without
gradients, and each micro-batch then differentiates its own (gradient caching, Gao et al. 2021,
arXiv 2101.06983). So 8x1, 4x2 and two processes with 4 are one step. Where vectors come from is the
recipe's.

Shapes: N pairs of the step, B pairs of this micro-batch, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX_SCALE = 100.0
"""Largest inverse temperature, as published."""


class Matcher(nn.Module):
    """What only the contrastive loss needs: the captions' own linear map, and the temperature."""

    def __init__(self, width: int, *, temperature: float) -> None:
        super().__init__()
        self.text = nn.Linear(width, width)
        nn.init.eye_(self.text.weight)
        nn.init.zeros_(self.text.bias)
        self.log_scale = nn.Parameter(torch.tensor(temperature).reciprocal().log())


@dataclass(frozen=True)
class Pairs:
    """Unit vectors of pictures and captions, what tells equal ones, and how much a pair counts."""

    image_ND: Tensor
    text_ND: Tensor
    keys_N2: Tensor
    weight_N: Tensor

    @classmethod
    def joined(cls, parts: list[Pairs]) -> Pairs:
        """Several micro-batches as one."""
        return cls(
            torch.cat([part.image_ND for part in parts]),
            torch.cat([part.text_ND for part in parts]),
            torch.cat([part.keys_N2 for part in parts]),
            torch.cat([part.weight_N for part in parts]),
        )

    def with_rows(self, own: Pairs, rows_B: Tensor) -> Pairs:
        """These pairs with those of one micro-batch put in, with their gradients."""
        return Pairs(
            self.image_ND.index_copy(0, rows_B, own.image_ND),
            self.text_ND.index_copy(0, rows_B, own.text_ND),
            self.keys_N2,
            self.weight_N,
        )

    def detached(self) -> Pairs:
        """The same numbers without gradients."""
        return Pairs(self.image_ND.detach(), self.text_ND.detach(), self.keys_N2, self.weight_N)


def similarities(pairs: Pairs, log_scale: Tensor) -> Tensor:
    """[N, N]: scaled cosine of every picture (row) and caption; -inf where it is no negative.

    Another row with the same picture or the same caption is neither right nor wrong.
    """
    scale = log_scale.exp().clamp(max=MAX_SCALE)
    score_NN = scale * pairs.image_ND @ pairs.text_ND.T
    same_NN = (pairs.keys_N2[:, None] == pairs.keys_N2[None]).any(-1)
    same_NN.fill_diagonal_(False)
    return score_NN.masked_fill(same_NN, -torch.inf)


def pair_losses(pairs: Pairs, log_scale: Tensor) -> Tensor:
    """[N]: half of -log p(caption | picture) - log p(picture | caption), over the N pairs."""
    score_NN = similarities(pairs, log_scale)
    own_N = score_NN.diagonal()
    to_text_N = score_NN.logsumexp(1) - own_N
    to_image_N = score_NN.logsumexp(0) - own_N
    return (to_text_N + to_image_N) / 2


def micro_batch_loss(everything: Pairs, own: Pairs, rows_B: Tensor, log_scale: Tensor) -> Tensor:
    """This micro-batch's part of the step's summed loss, with all of its gradient.

    The value is the sum over own rows, each times its weight. Own vectors also stand in the other
    rows' losses, so their gradient is that of the whole sum; the temperature's is that of own rows
    alone, since it is counted once for every micro-batch.
    """
    whole = everything.with_rows(own, rows_B)
    all_rows = (whole.weight_N * pair_losses(whole, log_scale.detach())).sum()
    own_rows = (whole.weight_N * pair_losses(whole.detached(), log_scale))[rows_B].sum()
    return own_rows + (all_rows - all_rows.detach())
