"""The gradient route from a frozen language model's loss back to the selector.

Dropping a token is what happens when its attention logit goes to minus infinity. So in training
the sequence stays whole and every visual key j gets log(p_j) added to its logit in every layer
(itself exempt), and its DeepStack rows are multiplied by p_j. Forward p is the hard top-K mask,
backward it is the soft top-K (straight-through on the *gate*; on embeddings it is known to
collapse, because RMSNorm divides by almost zero there). Hard forward means training computes
exactly what pruned inference computes.

Soft top-K: a_i = sigmoid(s_i / tau + t) with t such that sum a = K, by bisection; its gradient is
ds = (u - v sum(u) / sum(v)) / tau with v = a (1 - a), u = g v (implicit differentiation), and
dK = sum(u) / sum(v).

Shapes: I images, M cells (padded), B samples, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saccade.models.relevance.grids import CellGrid
from saccade.models.relevance.selector import Scored

BISECTION_STEPS = 50
GATE_FLOOR = 1e-12
"""Added inside the log: log 0 has no gradient to offer. Sharp attention outweighs 1e-6."""
GAIN_LIMIT_NATS = 2.0
"""Most that opening one gate is believed to change an answer's loss (see `bound_gain`)."""


class _SoftTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores_IM: Tensor, valid_IM: Tensor, kept_I: Tensor, temperature_I: Tensor
    ) -> Tensor:
        scaled_IM = scores_IM.float() / temperature_I[:, None]
        scaled_IM = scaled_IM.masked_fill(~valid_IM, -torch.inf)
        finite_IM = scaled_IM.masked_fill(~valid_IM, 0)
        low_I = -finite_IM.amax(1) - 20
        high_I = -finite_IM.amin(1) + 20
        for _ in range(BISECTION_STEPS):
            middle_I = (low_I + high_I) / 2
            too_many_I = torch.sigmoid(scaled_IM + middle_I[:, None]).sum(1) > kept_I
            high_I = torch.where(too_many_I, middle_I, high_I)
            low_I = torch.where(too_many_I, low_I, middle_I)
        gate_IM = torch.sigmoid(scaled_IM + ((low_I + high_I) / 2)[:, None])
        ctx.save_for_backward(gate_IM, temperature_I)
        return gate_IM

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None]:
        gate_IM, temperature_I = ctx.saved_tensors
        slope_IM = gate_IM * (1 - gate_IM)
        pull_IM = grads[0] * slope_IM
        mean_I1 = pull_IM.sum(1, keepdim=True) / slope_IM.sum(1, keepdim=True).clamp_min(1e-12)
        scores_IM = (pull_IM - slope_IM * mean_I1) / temperature_I[:, None]
        # one more token raises every gate in proportion to its slope: da/dK = v / sum v
        return scores_IM, None, mean_I1[:, 0], None


def soft_top_k(
    scores_IM: Tensor, *, valid_IM: Tensor, kept_I: Tensor, temperature_I: Tensor
) -> Tensor:
    """Gates in 0..1 that sum to `kept_I` per image; 0 outside `valid_IM`.

    Scores and `kept_I` get gradients (an adaptive budget is learned); the temperature gets none.
    """
    return _SoftTopK.apply(scores_IM, valid_IM, kept_I.to(scores_IM), temperature_I)  # type: ignore


def soft_choice(scored: Scored, grid: CellGrid, *, kept_I: Tensor, temperature: float) -> Tensor:
    """[N]: the soft top-K of a packed batch of images, each at its own softness."""
    valid_IM = grid.valid_IHW.flatten(1)
    soft_IM = soft_top_k(
        grid.pad(scored.logits_N[:, None])[..., 0].flatten(1),
        valid_IM=valid_IM,
        kept_I=kept_I,
        temperature_I=temperature * scored.softness_I,
    )
    return soft_IM[valid_IM]


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """Value of `hard`, gradient of `soft`."""
    return hard.to(soft.dtype) + soft - soft.detach()


def bound_gain(gate_N: Tensor, *, tokens: Tensor | float) -> Tensor:
    """Limit each gate's gradient to `GAIN_LIMIT_NATS` over the loss's `tokens`.

    At a closed gate the slope is exp(logit) / Z, which sharp attention makes thousands of times
    larger than what opening the gate could ever gain: a line through a saturating curve. Without
    this bound a single wanted but dropped cell throws the selector off.
    """
    limit = GAIN_LIMIT_NATS / tokens
    if gate_N.requires_grad:
        gate_N.register_hook(lambda gradient: gradient.clamp(-limit, limit))
    return gate_N


def gated_attention_mask(
    attention_mask_BL: Tensor, gate_BL: Tensor, *, dtype: torch.dtype
) -> Tensor:
    """Additive mask [B, 1, L, L]: causal, padding removed, log-gate on keys, own key exempt.

    `gate_BL` is 1 on text. The mask is float32 until the end so that its gradient is exact.
    """
    length = attention_mask_BL.shape[1]
    device = attention_mask_BL.device
    own_LL = torch.eye(length, dtype=torch.bool, device=device)
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    visible_BLL = (attention_mask_BL[:, None, :].bool() & causal_LL) | own_LL
    log_gate_BL = torch.log(gate_BL.float() + GATE_FLOOR)
    bias_BLL = log_gate_BL[:, None, :].masked_fill(own_LL, 0.0)
    bias_BLL = bias_BLL.expand(-1, length, -1).masked_fill(~visible_BLL, torch.finfo(dtype).min)
    return bias_BLL[:, None].to(dtype)
