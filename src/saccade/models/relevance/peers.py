"""Published selectors, re-implemented from their formulas: what each one thinks of a cell.

In go a batch's visual features; out come packed scores whose top-K is what the method keeps, and
for the one that merges, which cells are averaged into which. Everything is per image, float32 and
deterministic. The names say what a method does; docs/concepts/peers.md says which paper it follows
and where this code differs. Left out: turning scores into inputs (`reduce.py`, `peer_reduce.py`),
dropping inside the language model (`early.py`), and the trained one (`gated.py`).

Shapes: M cells of one image, N cells of all images, D width, T question tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.data.chat import user_text_mask
from saccade.models.relevance.attention_scores import (
    Received,
    catch_block_input,
    received_attention,
)
from saccade.models.relevance.diversity import (
    cosines,
    dpp_order,
    max_min_order,
    min_max,
    scope_order,
    scores_of_orders,
    set_step,
)

if TYPE_CHECKING:
    from saccade.models.relevance.baselines import ArmInfo
    from saccade.models.relevance.model import RelevanceModel, VisualFeatures

SCORED_PEERS = (
    "vision_attention", "vision_attention_drop", "max_min_diversity", "dpp", "scope",
)  # fmt: skip
"""Peers whose choice is a top-K of the scores below."""
CONTEXTUAL_SHARE = 10 / 64
"""Share of the budget spent on merged tokens: 54 dominant and 10 contextual of 64."""


def peer_scores(
    model: RelevanceModel, features: VisualFeatures, *, name: str, kept: list[int]
) -> Tensor:
    """Packed scores [N] of one of `SCORED_PEERS`; set methods rank their picks in order."""
    if name.startswith("vision_attention"):
        return vision_attention(model, features).attention_N
    cells = features.grid.counts
    extra: list[Tensor] = [torch.empty(0)] * len(kept)
    if name == "dpp":
        extra = question_relevance(model, features)
    if name == "scope":
        extra = list(vision_attention(model, features).attention_N.split(cells))
    orders = []
    for rows_MD, other_M, k in zip(_tokens(features).split(cells), extra, kept, strict=True):
        cosine_MM = cosines(rows_MD)
        if name == "dpp":
            orders.append(dpp_order(cosine_MM, other_M, kept=k))
        elif name == "scope":
            orders.append(scope_order(cosine_MM, other_M, kept=k))
        else:
            orders.append(max_min_order(cosine_MM, kept=k))
    return scores_of_orders(orders, cells=cells, device=model.device)


MMR_RELEVANCE = 0.5
"""Relevance against diversity in arms named `ARM+mmr`."""


def with_set_step(
    scores_N: Tensor,
    features: VisualFeatures,
    *,
    arm: ArmInfo,
    kept: list[int],
    relevance: float | None = None,
) -> Tensor:
    """The scores as they are, or re-ranked for diversity (MMR) when the arm asks for it.

    `relevance` is the trained selector's own setting. Cells are compared by what the arm knows of
    them: a selector that works before the vision tower has no tokens to compare.
    """
    if not arm.set_step and relevance is None:
        return scores_N
    rows_ND = features.cells_ND if arm.trained else _tokens(features)
    scores_N = scores_N.to(rows_ND.device)
    weight = MMR_RELEVANCE if relevance is None else relevance
    return set_step(scores_N, rows_ND, cells=features.grid.counts, kept=kept, relevance=weight)


def _tokens(features: VisualFeatures) -> Tensor:
    images = features.whole().images
    assert images is not None
    return torch.cat(images.pooled)


def vision_attention(model: RelevanceModel, features: VisualFeatures) -> Received:
    """Attention received and keys of every cell in the tower's observed block.

    What the tower computes anyway is caught once per batch of images and kept on the view; the
    attention itself is computed at every call, so that timing sees it.
    """
    view = features.view
    if "block_input" not in view.caught:
        view.caught["block_input"] = catch_block_input(model.base, view.pixels_ND, view.grid_I3)
    return received_attention(view.caught["block_input"], merge=model.layout.merge)


def question_relevance(model: RelevanceModel, features: VisualFeatures) -> list[Tensor]:
    """Mean cosine of each cell with the embeddings of the user's words, min-max per image."""
    inputs = features.whole()
    assert inputs.images is not None
    query = model.selector_config.query
    user_BL = user_text_mask(inputs.input_ids_BS, markers=model.markers, query=query)
    embed = model.get_input_embeddings()
    found = []
    rows = features.sample_of_image_I.tolist()
    for row, rows_MD in zip(rows, inputs.images.pooled, strict=True):
        words_T = inputs.input_ids_BS[row][user_BL[row]]
        if not len(words_T):  # no question: every cell is as relevant as the next
            found.append(torch.ones(len(rows_MD), device=rows_MD.device))
            continue
        words_D = F.normalize(embed(words_T).float(), dim=-1).mean(0)
        found.append(min_max(F.normalize(rows_MD.float(), dim=-1) @ words_D))
    return found


@dataclass(frozen=True)
class MergePlan:
    """One image: which cells stay, and the mean that makes each merged token out of cells."""

    keep_M: Tensor
    targets: Tensor  # cells that carry a merged token
    sources: Tensor  # cells that are not dominant, targets included
    weight_TR: Tensor  # targets x sources, rows sum to 1

    def merge(self, rows_MD: Tensor) -> Tensor:
        """Rows with each target replaced by the mean of the cells assigned to it."""
        if not len(self.targets):
            return rows_MD
        merged_TD = self.weight_TR @ rows_MD[self.sources].float()
        return rows_MD.index_copy(0, self.targets, merged_TD.to(rows_MD.dtype))


def plan_merge(scores_M: Tensor, keys_MD: Tensor, *, kept: int) -> MergePlan:
    """Dominant cells by score; the rest are averaged into contextual ones by likeness of keys.

    Contextual targets lie evenly spaced among the rest, in raster order; every other cell of the
    rest joins the target with the largest cosine (ties: the earlier target).
    """
    contextual = 0 if kept >= len(scores_M) else round(kept * CONTEXTUAL_SHARE)
    order_M = scores_M.argsort(descending=True, stable=True)
    keep_M = torch.zeros_like(scores_M, dtype=torch.bool)
    keep_M[order_M[: kept - contextual]] = True
    sources = (~keep_M).nonzero()[:, 0]
    steps = torch.arange(contextual, device=sources.device)
    spots = steps * len(sources) // max(1, contextual)
    targets = sources[spots]
    if not contextual:
        return MergePlan(keep_M, targets, sources, scores_M.new_zeros(0, len(sources)))
    unit_MD = F.normalize(keys_MD.float(), dim=-1)
    alike_RT = unit_MD[sources] @ unit_MD[targets].T
    best_R1 = alike_RT.amax(1, keepdim=True)
    joined_R = torch.where(alike_RT == best_R1, steps, contextual).amin(1)
    joined_R[spots] = steps
    weight_TR = F.one_hot(joined_R, contextual).T.float()
    keep_M[targets] = True
    return MergePlan(keep_M, targets, sources, weight_TR / weight_TR.sum(1, keepdim=True))
