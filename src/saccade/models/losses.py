"""The language-model loss every recipe shares: supervised positions only, one normaliser.

In go hidden states and labels; out come the summed token losses divided by a denominator the
training loop counts over the whole optimizer step (all micro-batches, all ranks), so that batch
8x1, 4x2 and two ranks are the same step. Only supervised positions reach the output layer, which
at a vocabulary of 150k is most of the memory.

Shapes: B samples, L tokens, D width, V vocabulary, T supervised tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saccade.data.chat import IGNORE_INDEX


@dataclass(frozen=True)
class SupervisedLoss:
    """`total` carries the gradient; the others are for logging."""

    total: Tensor
    token_accuracy: Tensor
    tokens: Tensor


def supervised_tokens(labels_BL: Tensor) -> Tensor:
    """How many next-token predictions the labels supervise (at least 1)."""
    return (labels_BL[:, 1:] != IGNORE_INDEX).sum().clamp_min(1)


def answer_log_probs(lm_head: Any, hidden_BLD: Tensor, labels_BL: Tensor) -> Tensor:
    """[B]: log-probability of each row's answer, summed over tokens whose label is not -100."""
    shifted_BL = labels_BL[:, 1:]
    learned_BL = shifted_BL != IGNORE_INDEX
    logits_TV = lm_head(hidden_BLD[:, :-1][learned_BL]).float()
    each_T = -torch.nn.functional.cross_entropy(logits_TV, shifted_BL[learned_BL], reduction="none")
    spread_BL = torch.zeros_like(shifted_BL, dtype=each_T.dtype)
    return spread_BL.masked_scatter(learned_BL, each_T).sum(1)


def preference_margins(policy_B: Tensor, reference_B: Tensor, *, beta: float) -> Tensor:
    """[P]: how much more than the reference the policy prefers each pair's first row.

    beta * ((log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected))), the
    difference of implicit rewards of DPO (Rafailov et al., arXiv 2305.18290); rows 2i and 2i + 1
    are the preferred and the rejected answer of pair i.
    """
    reward_P2 = beta * (policy_B - reference_B).unflatten(0, (-1, 2))
    return reward_P2[:, 0] - reward_P2[:, 1]


def supervised_loss(
    lm_head: Any, hidden_BLD: Tensor, labels_BL: Tensor, *, denominator: Tensor | float
) -> SupervisedLoss:
    """Next-token cross-entropy at positions whose label is not -100, summed / `denominator`."""
    shifted_BL = labels_BL[:, 1:]
    learned_BL = shifted_BL != IGNORE_INDEX
    logits_TV = lm_head(hidden_BLD[:, :-1][learned_BL]).float()
    target_T = shifted_BL[learned_BL]
    total = torch.nn.functional.cross_entropy(logits_TV, target_T, reduction="sum") / denominator
    hits_T = (logits_TV.argmax(-1) == target_T).float()
    tokens = learned_BL.sum()
    return SupervisedLoss(total, hits_T.sum().detach() / tokens.clamp_min(1), tokens)
