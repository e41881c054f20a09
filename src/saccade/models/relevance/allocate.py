"""Turn scores into a choice: how many cells each image keeps, and which.

In go per-image budgets and packed scores; out come boolean keep masks in raster order. Exact,
deterministic (ties go to the lower index) and per image. Left out: coarse tokens.

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
