"""Run the vision tower on a batch of images, each distinct neighbour once.

In go patch rows and grids; out come every image's merged tokens and DeepStack rows. Batches keep
the questions about an image together, so equal images stand side by side; they are recognised by
their pixels and encoded a single time.

Shapes: N patches of all images, D patch values, I images, J distinct images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saccade.models.relevance.prune import ImageTokens


@dataclass(frozen=True)
class EncodedImages:
    """Tokens per image; `distinct_of[i]` is image i's row among the distinct ones."""

    tokens: ImageTokens
    pixels_ND: Tensor
    grid_J3: Tensor
    distinct_of: list[int]


@torch.no_grad()
def encode_images(base: Any, pixels_ND: Tensor, grid_I3: Tensor) -> EncodedImages:
    """The frozen tower's features of every image of a packed batch."""
    pixels_ND, grid_J3, distinct_of = _distinct(pixels_ND, grid_I3)
    out = base.model.get_image_features(pixels_ND, grid_J3, return_dict=True)
    # families before Qwen3-VL have no DeepStack
    levels = getattr(out, "deepstack_features", None) or []
    tokens = ImageTokens(
        pooled=tuple(out.pooler_output[j] for j in distinct_of),
        deepstack=tuple(tuple(level[j] for j in distinct_of) for level in levels),
    )
    return EncodedImages(tokens, pixels_ND, grid_J3, distinct_of)


def _distinct(pixels_ND: Tensor, grid_I3: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Collapse runs of identical images."""
    parts = pixels_ND.split(grid_I3.prod(-1).tolist())
    chosen: list[int] = []
    distinct_of: list[int] = []
    for image, part in enumerate(parts):
        if not chosen or not _same(part, parts[chosen[-1]]):
            chosen.append(image)
        distinct_of.append(len(chosen) - 1)
    if len(chosen) == len(parts):
        return pixels_ND, grid_I3, distinct_of
    return torch.cat([parts[i] for i in chosen]), grid_I3[chosen], distinct_of


def _same(a_ND: Tensor, b_ND: Tensor) -> bool:
    # a cheap glance first: most different images differ in size or in their first row
    return a_ND.shape == b_ND.shape and torch.equal(a_ND[0], b_ND[0]) and torch.equal(a_ND, b_ND)
