"""From the features of a frozen encoder to capsules, by a rule without random parts.

An `Encoder` (the tower in `models/shard_encoder.py`, or a toy in tests) turns pictures into one
feature per cell [T, D]. Capsules pool them by attention with fixed queries: capsule k stands at the
middle of its part of the picture, cut into as many equal parts as there are capsules, and attends
to cell t with

    w[k, t] = softmax_t( -|p_t - q_k|^2 / (2 s^2) )

where p_t and q_k are places in the unit square, distances are in units of a part's sides, and
s = 1/2. Children do the same for the equal parts of a capsule's own part. A pooling that is learned
belongs to the model that reads the shards; `shards.keep_tokens` stores what it would pool.

Shapes: B pictures, T = rows x columns cells, K capsules, C children, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

RULE = "gauss-1"
"""Name of the pooling rule; part of what a shard's identity depends on."""
SPREAD = 0.5


class Encoder(Protocol):
    """Pictures in, one feature per cell out; `digest` names everything its numbers depend on."""

    digest: str
    name: str
    width: int
    grid: tuple[int, int]
    alone: bool
    """Whether a picture's features are the same, to the last bit, whatever its neighbours are."""

    @property
    def prepare(self) -> Callable[[Sequence[Image.Image]], Sequence[Any]]:
        """Makes pixels as the encoder takes them, one value per picture; another process does it,
        so it can be pickled, and does not hold the model."""
        ...

    def encode(self, prepared: Sequence[Any]) -> Tensor:
        """Features [B, T, D]."""
        ...


def split_parts(count: int) -> tuple[int, int]:
    """Rows and columns of the most square cut into `count` parts, at least as wide as high."""
    rows = max(n for n in range(1, math.isqrt(count) + 1) if count % n == 0)
    return rows, count // rows


def pooling_weights(grid: tuple[int, int], *, parts: tuple[int, int]) -> Tensor:
    """Weights [K, T] of the stated rule; every row sums to 1."""
    logits = torch.zeros((*parts, *grid), dtype=torch.float64)
    for axis in (0, 1):
        places = (torch.arange(grid[axis], dtype=torch.float64) + 0.5) / grid[axis]
        queries = (torch.arange(parts[axis], dtype=torch.float64) + 0.5) / parts[axis]
        apart = (queries[:, None] - places[None, :]) * parts[axis]
        shape = [1, 1, 1, 1]
        shape[axis], shape[2 + axis] = parts[axis], grid[axis]
        logits = logits - (apart**2 / (2 * SPREAD**2)).reshape(shape)
    return logits.flatten(2).flatten(0, 1).softmax(dim=-1).float()


class Pooling:
    """The fixed rule for one size of picture: features [B, T, D] -> sketches and children."""

    def __init__(self, grid: tuple[int, int], *, capsules: int, children: int) -> None:
        self.capsules, self.children = capsules, children
        rows, columns = split_parts(capsules)
        self.sketch_KT = pooling_weights(grid, parts=(rows, columns))
        self.child_KCT: Tensor | None = None
        if children:
            n = math.isqrt(children)
            finer = pooling_weights(grid, parts=(rows * n, columns * n))
            by_part = finer.reshape(rows, n, columns, n, -1).permute(0, 2, 1, 3, 4)
            self.child_KCT = by_part.reshape(capsules, children, -1)

    def __call__(self, tokens_BTD: Tensor) -> dict[str, Tensor]:
        """Sketches [B, K, D] and, if kept, children [B, K, C, D], in half precision."""
        plain = tokens_BTD.float()
        pooled = {"sketches": torch.einsum("kt,btd->bkd", self.sketch_KT.to(plain), plain)}
        if self.child_KCT is not None:
            weights = self.child_KCT.to(plain)
            pooled["children"] = torch.einsum("kct,btd->bkcd", weights, plain)
        return {name: values.half() for name, values in pooled.items()}
