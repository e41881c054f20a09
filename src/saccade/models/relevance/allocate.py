"""Turn scores into a choice: how many cells each image keeps, and which.

In go per-image budgets and packed scores; out come boolean keep masks in raster order. Exact,
deterministic (ties go to the lower index) and per image. An adaptive budget moves each image's
number by the compress / particularise tension. Left out: coarse tokens (`detail.py`).

Shapes: N cells of all images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def budget(
    cells: int, keep: int | float, *, min_tokens: int = 1, max_tokens: int | None = None
) -> int:
    """Cells one image keeps: `keep` as a count (int) or a share (float), clamped to what exists."""
    wanted = keep if isinstance(keep, int) else round(cells * keep)
    if max_tokens is not None:
        wanted = min(wanted, max_tokens)
    return max(1, min(max(wanted, min_tokens), cells))


def adapted(
    kept: list[int], compress_I: Tensor, *, cells: list[int], reach: float, neutral: float
) -> Tensor:
    """[I]: budgets moved by the compress tension, within a factor `reach` both ways.

    K * reach ** tanh(logit(neutral) - logit(compress)): a neutral tension leaves K alone, a high
    one shrinks it. Real numbers with a gradient; round them to choose.
    """
    away_I = math.log(neutral / (1 - neutral)) - torch.logit(compress_I, eps=1e-6)
    factor_I = torch.exp(math.log(reach) * torch.tanh(away_I))
    most_I = torch.tensor(cells, device=factor_I.device, dtype=factor_I.dtype)
    return (factor_I * torch.tensor(kept, device=factor_I.device)).clamp_min(1).minimum(most_I)


def top_k(scores_N: Tensor, *, cells: list[int], kept: list[int]) -> Tensor:
    """Boolean [N]: the `kept[i]` highest-scoring cells of image i, ties to the lower index."""
    keep_N = torch.zeros_like(scores_N, dtype=torch.bool)
    start = 0
    for count, k in zip(cells, kept, strict=True):
        order = scores_N[start : start + count].argsort(descending=True, stable=True)
        keep_N[start + order[:k]] = True
        start += count
    return keep_N


def lattice(height: int, width: int, *, kept: int) -> tuple[int, int]:
    """Rows and columns a x b <= kept, as large as possible, nearest to the grid's aspect."""
    best, best_cost = (1, 1), float("inf")
    for rows in range(1, min(height, kept) + 1):
        columns = min(width, kept // rows)
        misfit = abs(math.log((rows / columns) / (height / width)))
        cost = (kept - rows * columns) / kept + 0.5 * misfit
        if cost < best_cost:
            best, best_cost = (rows, columns), cost
    return best
