"""Level of detail: the best cells as they are, the rest as a quadtree of pooled tokens.

In go an image's scores, its budget and the share of it that goes to coarse tokens; out comes, for
every cell, the token it ends in. Cells that are not chosen are covered by the largest aligned
blocks (`region` cells wide, halved down to 2) that hold no chosen cell; what is left of a smallest
block that does hold one is pooled too. A pooled token is the mean of its cells in the visual
tokens and in every DeepStack level, at the mean of their M-RoPE positions. The end points are
exact: no coarse share is dropping, nothing but coarse tokens is average pooling. No parameters.

Shapes: H x W cells of one image, N = H * W, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 2


@dataclass(frozen=True)
class Detail:
    """`token_N` is each cell's token, numbered in raster order of first cells; -1 is dropped.

    `fine_N` marks the cells that stay as they are; `fine` and `coarse` count tokens.
    """

    token_N: Tensor
    fine_N: Tensor
    fine: int
    coarse: int

    @property
    def first_N(self) -> Tensor:
        """True at the first cell of every token: whose placeholder the token takes."""
        count = self.fine + self.coarse
        first_T = torch.full((count + 1,), len(self.token_N), device=self.token_N.device)
        place_N = torch.arange(len(self.token_N), device=self.token_N.device)
        first_T.scatter_reduce_(0, self.token_N % (count + 1), place_N, "amin")
        keep_N = torch.zeros(len(self.token_N), dtype=torch.bool, device=self.token_N.device)
        keep_N[first_T[:count]] = True
        return keep_N

    def pool(self, rows_ND: Tensor) -> Tensor:
        """[T, D]: the mean of each token's cells."""
        seen_N = self.token_N >= 0
        index_K = self.token_N[seen_N]
        total_TD = rows_ND.new_zeros(self.fine + self.coarse, rows_ND.shape[1])
        total_TD.index_add_(0, index_K, rows_ND[seen_N])
        return total_TD / index_K.bincount()[:, None].to(rows_ND.dtype)


def plan_detail(
    scores_HW: Tensor,
    *,
    kept: int,
    coarse_share: float,
    region: int = 4,
    max_per_region: int | None = None,
) -> Detail:
    """Spend `kept` tokens: at most `coarse_share` of them coarse, the others on the best cells.

    `region` is a power of two from 2; `max_per_region` bounds the fine tokens of one region. Ties
    go to the lower index. Coarse tokens that do not fit are dropped, least relevant first.
    """
    wanted = kept - round(kept * coarse_share)
    fine_HW = best_cells(scores_HW, kept=wanted, region=region, max_per_region=max_per_region)
    fine = int(fine_HW.sum())
    key_N = _block_keys(fine_HW, region=region).flatten()
    token_N = torch.full_like(key_N, -1)
    if round(kept * coarse_share):
        allowed = kept - fine
        names, inverse_M = key_N[key_N >= 0].unique(return_inverse=True)
        score_T = torch.zeros(len(names), dtype=torch.float32, device=scores_HW.device)
        score_T.index_add_(0, inverse_M, scores_HW.flatten()[key_N >= 0].float())
        score_T /= inverse_M.bincount(minlength=len(names))
        chosen_T = torch.zeros(len(names), dtype=torch.bool, device=score_T.device)
        chosen_T[score_T.argsort(descending=True, stable=True)[:allowed]] = True
        token_N[key_N >= 0] = torch.where(chosen_T[inverse_M], inverse_M, -1)
    fine_N = fine_HW.flatten()
    cells = torch.arange(len(token_N), device=token_N.device)
    # blocks and cells share one numbering, then both are renamed in order of their first cells
    token_N = torch.where(fine_N, cells + len(token_N), token_N)
    return _renamed(token_N, fine_N=fine_N)


def best_cells(scores_HW: Tensor, *, kept: int, region: int, max_per_region: int | None) -> Tensor:
    """Boolean [H, W]: the `kept` best cells, of any region at most `max_per_region`."""
    height, width = scores_HW.shape
    order_N = scores_HW.flatten().argsort(descending=True, stable=True)
    if max_per_region is not None:
        across = -(-width // region)
        region_N = (order_N // width // region) * across + order_N % width // region
        # rank of each cell among its region's cells, best first
        sorted_N, place_N = region_N.sort(stable=True)
        first_N = torch.searchsorted(sorted_N, sorted_N)
        rank_N = torch.empty_like(order_N)
        rank_N[place_N] = torch.arange(len(order_N), device=order_N.device) - first_N
        order_N = order_N[rank_N < max_per_region]
    keep_N = torch.zeros(height * width, dtype=torch.bool, device=scores_HW.device)
    keep_N[order_N[:kept]] = True
    return keep_N.reshape(height, width)


def _block_keys(fine_HW: Tensor, *, region: int) -> Tensor:
    """[H, W]: the name of the block each cell is pooled in, -1 for the fine cells themselves."""
    height, width = fine_HW.shape
    rows = torch.arange(height, device=fine_HW.device)[:, None]
    columns = torch.arange(width, device=fine_HW.device)[None, :]
    key_HW = torch.full((height, width), -1, device=fine_HW.device)
    side, offset = SMALLEST, 0
    while side <= region:
        name_HW = offset + rows // side * width + columns // side
        taken = F.max_pool2d(fine_HW[None].float(), side, ceil_mode=True)[0] > 0
        taken_HW = taken.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]
        # a smallest block always pools what is not fine in it; a larger one only when it is free
        free_HW = ~fine_HW if side == SMALLEST else ~taken_HW
        key_HW = torch.where(free_HW, name_HW, key_HW)
        side, offset = side * 2, offset + height * width
    return key_HW


def _renamed(token_N: Tensor, *, fine_N: Tensor) -> Detail:
    names, inverse_M = token_N[token_N >= 0].unique(return_inverse=True)
    place_M = (token_N >= 0).nonzero()[:, 0]
    first_T = torch.full((len(names),), len(token_N), device=token_N.device)
    first_T.scatter_reduce_(0, inverse_M, place_M, "amin")
    rank_T = first_T.argsort().argsort()
    renamed_N = token_N.clone()
    renamed_N[place_M] = rank_T[inverse_M]
    fine = int(fine_N.sum())
    return Detail(token_N=renamed_N, fine_N=fine_N, fine=fine, coarse=len(names) - fine)
