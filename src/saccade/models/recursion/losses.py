"""The losses of one step of thinking: the answer's cells, and whether it is right.

Scores and labels flow in, one number per slot flows out, so that the caller decides over what to
average. Formulas as published (arXiv 2510.04871 and its code): the cells' loss is a mean over a
slot's supervised cells, the halting loss is binary cross-entropy of the halting score against "all
supervised cells are right". Left out: reductions over slots, and learned Q-values.

Shapes: B slots, L cells, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = -100


@dataclass(frozen=True)
class StepLosses:
    """What one step of thinking cost each slot, and how right it was; all [B]."""

    answer_B: Tensor
    halt_B: Tensor
    right_B: Tensor
    cells_B: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)
    """What extras add, weighted already."""


def stablemax(x: Tensor) -> Tensor:
    """Positive scores: x + 1 from zero up, 1 / (1 - x) below (arXiv 2501.04697)."""
    return torch.where(x < 0, 1 / (1 - x.clamp(max=0)), x.clamp(min=0) + 1)


def log_stablemax(logits: Tensor) -> Tensor:
    """Logarithm of s(x) / sum(s(x)) over the last axis, in float64."""
    scores = stablemax(logits.double())
    return torch.log(scores / scores.sum(-1, keepdim=True))


def cell_losses(logits_BLV: Tensor, labels_BL: Tensor, *, kind: str) -> Tensor:
    """[B, L]: negative log-probability of each supervised label, 0 elsewhere."""
    supervised_BL = labels_BL != IGNORE_INDEX
    wanted_BL = labels_BL.where(supervised_BL, 0)
    if kind == "stablemax":
        log_BLV = log_stablemax(logits_BLV)
    else:
        log_BLV = functional.log_softmax(logits_BLV.double(), dim=-1)
    picked_BL = -log_BLV.gather(-1, wanted_BL[..., None])[..., 0]
    return picked_BL.where(supervised_BL, torch.zeros_like(picked_BL))


def right_cells(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """[B, L]: whether a supervised cell is right; False where nothing is supervised."""
    return (logits_BLV.argmax(-1) == labels_BL) & (labels_BL != IGNORE_INDEX)


def step_losses(
    logits_BLV: Tensor, halt_B: Tensor, labels_BL: Tensor, *, kind: str = "stablemax"
) -> StepLosses:
    """Losses and correctness of one step of thinking, per slot."""
    supervised_B = (labels_BL != IGNORE_INDEX).sum(-1)
    each_BL = cell_losses(logits_BLV, labels_BL, kind=kind)
    with torch.no_grad():
        hits_B = right_cells(logits_BLV, labels_BL).sum(-1)
        right_B = hits_B == supervised_B
    halt_loss_B = functional.binary_cross_entropy_with_logits(
        halt_B, right_B.to(halt_B.dtype), reduction="none"
    )
    share = supervised_B.clamp(min=1)
    return StepLosses(
        answer_B=each_BL.sum(-1) / share,
        halt_B=halt_loss_B,
        right_B=right_B,
        cells_B=hits_B / share,
    )
