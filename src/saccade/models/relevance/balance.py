"""Balance the three scores cell by cell, then let three opponent tensions shape the result.

In go the score maps, the cells, the question's summary and the share of cells that may be kept;
out comes one logit per cell and a record of the weights and tensions. Knowing the budget lets one
selector serve many: what to trust with 5 % of the cells is not what to trust with 25 %. The
tensions act, and are logged:

- compress / particularise: how far a cell's logit is replaced by its 3x3 neighbourhood's mean, so
  the budget goes to whole regions rather than to single cells;
- exploit / explore: how much the best cell of each 4x4 block is lifted (a coverage floor) and how
  soft the gate is;
- focus / diversify: how much a cell is lowered for resembling cells that score higher.

Left out: the split of the budget into fine and coarse tokens (`detail.py`, which may follow the
first tension).

Shapes: I images, H x W grid, W selector width, K scores, A anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.models.relevance.grids import box_mean, image_mean, standardise

TENSIONS = ("compress", "explore", "diversify")
NEUTRAL = 0.1
"""Where each tension starts, and stays when it is not learned."""
COVERAGE_SIDE = 4
ANCHORS = 128
"""Highest-scoring cells a cell is compared with in the diversity step."""


@dataclass(frozen=True)
class Balanced:
    """`logit_IHW` ranks cells; `weight_IHWK` sums to 1 per cell; `tension_I3` is in 0..1.

    `plain_IHW` is the logit before the tensions. `softness_I` multiplies the temperature of the
    soft top-K.
    """

    logit_IHW: Tensor
    plain_IHW: Tensor
    weight_IHWK: Tensor
    tension_I3: Tensor
    softness_I: Tensor


class Weigh(nn.Module):
    """Weights of the scores for each cell, from the cell, its scores, its region and the question.

    The region's scores (3x3 and 5x5 means) let one score point at the part that another judges:
    near a match, trust information, and the cell with the answer on it wins.
    """

    def __init__(self, width: int, *, scores: int) -> None:
        super().__init__()
        self.cell = nn.Linear(width, 64)
        self.question = nn.Linear(width, 64, bias=False)
        self.budget = nn.Linear(1, 64, bias=False)
        self.maps = nn.Linear(3 * scores, 64, bias=False)
        self.out = nn.Linear(64, scores)

    def forward(
        self,
        maps_IHWK: Tensor,
        cells_IHWW: Tensor,
        question_IW: Tensor,
        budget_I1: Tensor,
        valid_IHW: Tensor,
    ) -> Tensor:
        regions = [box_mean(maps_IHWK, valid_IHW, radius=radius) for radius in (1, 2)]
        hidden = self.cell(cells_IHWW) + self.maps(torch.cat([maps_IHWK, *regions], -1))
        image_I64 = self.question(question_IW) + self.budget(budget_I1)
        return self.out(F.gelu(hidden + image_I64[:, None, None])).softmax(-1)


class Balance(nn.Module):
    """Per-cell weights over the active scores and the three tensions."""

    def __init__(
        self, width: int, *, scores: int, learn_tensions: bool, learn_weights: bool = True
    ) -> None:
        super().__init__()
        # one score needs no weighing, and parameters that do nothing would never get a gradient
        self.weigh = Weigh(width, scores=scores) if scores > 1 and learn_weights else None
        self.code = nn.Linear(width, 32, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(()))
        start = torch.logit(torch.tensor(NEUTRAL))
        self.tensions = nn.Linear(width + 3 * scores + 1, 3) if learn_tensions else None
        if self.tensions is not None:
            nn.init.normal_(self.tensions.weight, std=0.01)
            nn.init.constant_(self.tensions.bias, float(start))

    def forward(
        self,
        maps_IHWK: Tensor,
        *,
        cells_IHWW: Tensor,
        question_IW: Tensor,
        share_I: Tensor,
        valid_IHW: Tensor,
    ) -> Balanced:
        budget_I1 = (share_I[:, None].log2() + 3) / 2  # about -1..1 for 5 to 50 %
        weight_IHWK = torch.full_like(maps_IHWK, 1 / maps_IHWK.shape[-1])
        if self.weigh is not None:
            weight_IHWK = self.weigh(maps_IHWK, cells_IHWW, question_IW, budget_I1, valid_IHW)
        base_IHW = (weight_IHWK * maps_IHWK).sum(-1)
        tension_I3 = self._tensions(maps_IHWK, question_IW, budget_I1, valid_IHW)
        compress, explore, diversify = tension_I3.unbind(-1)
        plain_IHW = logit_IHW = standardise(base_IHW, valid_IHW)
        logit_IHW = _compress(logit_IHW, valid_IHW, amount_I=compress)
        logit_IHW = logit_IHW + explore[:, None, None] * _coverage(logit_IHW, valid_IHW)
        code_IHWC = F.normalize(self.code(cells_IHWW), dim=-1, eps=1e-4)
        redundancy_IHW = _redundancy(logit_IHW, code_IHWC, valid_IHW)
        logit_IHW = logit_IHW - diversify[:, None, None] * redundancy_IHW
        # imitating a peaked teacher needs a scale, ranks do not; and the tensions are there for the
        # answers, so the teacher sees the logit before them
        plain_IHW = plain_IHW * self.log_scale.exp()
        return Balanced(logit_IHW, plain_IHW, weight_IHWK, tension_I3, 0.5 + 5 * explore.detach())

    def _tensions(
        self, maps_IHWK: Tensor, question_IW: Tensor, budget_I1: Tensor, valid_IHW: Tensor
    ) -> Tensor:
        if self.tensions is None:
            return maps_IHWK.new_full((len(maps_IHWK), 3), NEUTRAL)
        outside = ~valid_IHW[..., None]
        peak = maps_IHWK.masked_fill(outside, -torch.inf).amax((1, 2))
        # the maps have mean 0 and deviation 1 already; their shape is in the tails
        skew = image_mean(maps_IHWK.clamp(-4, 4) ** 3, valid_IHW) / 4
        kurtosis = image_mean(maps_IHWK.clamp(-4, 4) ** 4, valid_IHW) / 16
        image = torch.cat([question_IW, budget_I1, peak / 4, skew, kurtosis], -1)
        return torch.sigmoid(self.tensions(image))


def _compress(logit_IHW: Tensor, valid_IHW: Tensor, *, amount_I: Tensor) -> Tensor:
    region_IHW = box_mean(logit_IHW[..., None], valid_IHW, radius=1)[..., 0]
    return torch.lerp(logit_IHW, region_IHW, amount_I[:, None, None])


def _coverage(logit_IHW: Tensor, valid_IHW: Tensor) -> Tensor:
    """Each cell's share of its 4x4 block's softmax: near 1 for the block's clear winner."""
    height, width = logit_IHW.shape[1:]
    side = COVERAGE_SIDE
    masked = logit_IHW.masked_fill(~valid_IHW, -1e4)
    padded = F.pad(masked, (0, -width % side, 0, -height % side), value=-1e4)
    blocks = padded.unflatten(1, (-1, side)).unflatten(3, (-1, side))  # I, h, side, w, side
    flat = blocks.transpose(2, 3).flatten(3)
    share = flat.softmax(-1).unflatten(-1, (side, side)).transpose(2, 3)
    return share.flatten(3).flatten(1, 2)[:, :height, :width] * valid_IHW


def _redundancy(logit_IHW: Tensor, code_IHWC: Tensor, valid_IHW: Tensor) -> Tensor:
    """Largest (soft) squared cosine with cells that score higher; 0 for the best cell.

    Only the `ANCHORS` highest cells are compared with, so the cost stays linear in the cells.
    """
    images = logit_IHW.shape[0]
    logit_IN = logit_IHW.masked_fill(~valid_IHW, -1e4).flatten(1)
    code_INC = code_IHWC.flatten(1, 2)
    anchors = min(ANCHORS, logit_IN.shape[1])
    top_IA, index_IA = logit_IN.topk(anchors, dim=1)
    code_IAC = code_INC.gather(1, index_IA[..., None].expand(-1, -1, code_INC.shape[-1]))
    alike_INA = torch.einsum("inc,iac->ina", code_INC, code_IAC).clamp_min(0) ** 2
    above_INA = torch.sigmoid(4 * (top_IA[:, None] - logit_IN[..., None]) - 2)
    # a smaller image's padding must not dilute the soft maximum
    padding_I1A = ~valid_IHW.flatten(1).gather(1, index_IA)[:, None]
    sharp_INA = (8 * alike_INA).masked_fill(padding_I1A, -torch.inf).softmax(-1)
    redundancy_IN = (sharp_INA * alike_INA * above_INA).sum(-1)
    return redundancy_IN.reshape(images, *logit_IHW.shape[1:]) * valid_IHW
