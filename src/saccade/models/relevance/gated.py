"""A trained peer: query-free selection by two projections (the scorer of VisionSelector).

After arXiv 2510.16598, from its formula: a cell's score is the mean over the image's cells i of
q_i . k_j / sqrt(W), with two trained projections to half the feature width and nothing else. The
question, the textures and the budget are not read. Stands behind the interface of
`RelevanceSelector` (`selector.kind=gated`), so that it trains, saves and answers like ours. Left
out: how the paper trains it (`multiply.py`).

Shapes: N cells of all images, I images, D feature width, W selector width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.models.relevance.balance import NEUTRAL, TENSIONS
from saccade.models.relevance.grids import CellGrid
from saccade.models.relevance.selector import Question, Scored
from saccade.models.relevance.textures import Textures


class GatedSelector(nn.Module):
    """Scores every cell by the mean of its image's queries."""

    def __init__(self, *, feature_width: int) -> None:
        super().__init__()
        width = max(1, feature_width // 2)
        self.query = nn.Linear(feature_width, width, bias=False)
        self.key = nn.Linear(feature_width, width, bias=False)

    def forward(
        self,
        features_ND: Tensor,
        *,
        textures: Textures,
        grid: CellGrid,
        question: Question,
        sample_of_image_I: Tensor,
        share_I: Tensor,
    ) -> Scored:
        """Score a packed batch; only `features_ND` and `grid` are read."""
        # normalised as for our own selector: channels differ in scale by orders of magnitude
        features_ND = F.layer_norm(features_ND.to(self.key.weight.dtype), features_ND.shape[-1:])
        query_NW, key_NW = self.query(features_ND), self.key(features_ND)
        # the mean of all q_i . k_j is the product with the mean query: linear in the cells
        logits_N = torch.cat(
            [
                keys_MW @ queries_MW.mean(0) / math.sqrt(key_NW.shape[-1])
                for queries_MW, keys_MW in zip(
                    query_NW.split(grid.counts), key_NW.split(grid.counts), strict=True
                )
            ]
        )
        images = len(grid.counts)
        return Scored(
            logits_N=logits_N,
            plain_N=logits_N,
            maps={},
            weights={},
            tension_I3=logits_N.new_full((images, len(TENSIONS)), NEUTRAL),
            softness_I=logits_N.new_ones(images),
        )
