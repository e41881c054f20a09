"""Choose sets instead of single cells: spread, determinants, coverage, and MMR on any score.

In go one image's features (and a score where the method has one); out comes the order in which a
greedy method picks cells, or, for a packed batch, scores whose top-K is that set. Re-implemented
from the formulas of DivPrune (arXiv 2503.02175), CDPruner (2506.10967), SCOPE (2510.24214) and
maximal marginal relevance as IDPruner uses it (2602.13315). Everything is float32, per image and
deterministic: ties go to the lower index. Left out: where scores come from.

Shapes: M cells of one image, N cells of all images, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EXHAUSTED = 1e-5
"""A determinant step that adds less than this share of the first one adds only rounding."""


def cosines(features_MD: Tensor) -> Tensor:
    """Cosine similarity of every pair of cells, [M, M]."""
    unit_MD = F.normalize(features_MD.float(), dim=-1)
    return unit_MD @ unit_MD.T


def min_max(scores_M: Tensor) -> Tensor:
    """One image's scores stretched to 0..1; a flat map becomes all zeros."""
    low, high = scores_M.min(), scores_M.max()
    return (scores_M - low) / (high - low).clamp_min(torch.finfo(scores_M.dtype).tiny)


def max_min_order(cosine_MM: Tensor, *, kept: int) -> list[int]:
    """Max-min diversity: each pick lies farthest (1 - cosine) from the nearest one before it.

    The first pick is the cell with the largest distance to its nearest neighbour.
    """
    distance_MM = 1 - cosine_MM
    alone_MM = distance_MM.clone().fill_diagonal_(torch.inf)
    picked = [_first_largest(alone_MM.amin(1))]
    nearest_M = distance_MM[picked[0]].clone()
    while len(picked) < kept:
        nearest_M[picked[-1]] = -torch.inf
        picked.append(_first_largest(nearest_M))
        nearest_M = torch.minimum(nearest_M, distance_MM[picked[-1]])
    return picked


def dpp_order(cosine_MM: Tensor, relevance_M: Tensor, *, kept: int) -> list[int]:
    """Greedy maximum of det(L_S) with L = diag(r) C diag(r) (fast greedy MAP, by Cholesky rows).

    Features span at most D directions, so a set larger than that has determinant 0 whatever it
    holds: from there on cells follow by relevance.
    """
    kernel_MM = relevance_M[:, None] * cosine_MM * relevance_M[None, :]
    gain_M = kernel_MM.diagonal().clone()
    least = EXHAUSTED * gain_M.max()
    rows_KM = kernel_MM.new_zeros(kept, len(gain_M))
    picked: list[int] = []
    while len(picked) < kept:
        best = _first_largest(gain_M)
        if gain_M[best] <= least:
            break
        step = len(picked)
        before_M = rows_KM[:step, best] @ rows_KM[:step]
        rows_KM[step] = (kernel_MM[best] - before_M) / gain_M[best].sqrt()
        gain_M = gain_M - rows_KM[step] ** 2
        picked.append(best)
        gain_M[picked] = -torch.inf
    return picked + _rest(relevance_M, picked)[: kept - len(picked)]


def scope_order(cosine_MM: Tensor, score_M: Tensor, *, kept: int) -> list[int]:
    """Saliency x coverage: a pick's score times what it covers that no earlier pick did."""
    covered_M = torch.zeros_like(score_M)
    taken_M = torch.zeros_like(score_M, dtype=torch.bool)
    picked: list[int] = []
    while len(picked) < kept:
        new_M = (cosine_MM - covered_M[:, None]).clamp_min(0).sum(0)
        picked.append(_first_largest((score_M * new_M).masked_fill(taken_M, -torch.inf)))
        taken_M[picked[-1]] = True
        covered_M = torch.maximum(covered_M, cosine_MM[:, picked[-1]])
    return picked


def mmr_order(
    cosine_MM: Tensor, score_M: Tensor, *, kept: int, relevance: float = 0.5
) -> list[int]:
    """Maximal marginal relevance: score against likeness to what is already picked.

    argmax of `relevance` * s - (1 - `relevance`) * max cosine with the picks, s min-max per image;
    the first pick is the best score.
    """
    stretched_M = min_max(score_M)
    picked = [_first_largest(stretched_M)]
    alike_M = cosine_MM[picked[0]].clone()
    while len(picked) < kept:
        value_M = relevance * stretched_M - (1 - relevance) * alike_M
        value_M[picked] = -torch.inf
        picked.append(_first_largest(value_M))
        alike_M = torch.maximum(alike_M, cosine_MM[picked[-1]])
    return picked


def set_step(
    scores_N: Tensor,
    features_ND: Tensor,
    *,
    cells: list[int],
    kept: list[int],
    relevance: float = 0.5,
) -> Tensor:
    """Scores whose top-K is the MMR set of `scores_N`: a set step on top of any ranking."""
    orders = [
        mmr_order(cosines(features_MD), scores_M.float(), kept=k, relevance=relevance)
        for scores_M, features_MD, k in zip(
            scores_N.split(cells), features_ND.split(cells), kept, strict=True
        )
    ]
    return scores_of_orders(orders, cells=cells, device=scores_N.device)


def scores_of_orders(orders: list[list[int]], *, cells: list[int], device: torch.device) -> Tensor:
    """Packed scores that rank each image's picks in their order and everything else below."""
    maps = []
    for order, count in zip(orders, cells, strict=True):
        scores_M = torch.zeros(count)
        scores_M[order] = torch.arange(len(order), 0, -1, dtype=torch.float32)
        maps.append(scores_M)
    return torch.cat(maps).to(device)


def _first_largest(values_M: Tensor) -> int:
    # argmax may return any of several equal maxima; the lower index is the promise
    return int((values_M == values_M.max()).nonzero()[0, 0])


def _rest(score_M: Tensor, picked: list[int]) -> list[int]:
    order = score_M.argsort(descending=True, stable=True).tolist()
    taken = set(picked)
    return [cell for cell in order if cell not in taken]
