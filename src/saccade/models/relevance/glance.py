"""Look before you encode: what a selector can know of an image before the vision tower reads it.

Two placements choose cells first and encode only those. `pixels` judges by textures, each cell with
the means of its surroundings, and by the tower's patch embedding of its pixels: one linear map,
before any block. `glance` encodes a small preview of the image, spreads its tokens over the full
grid, and adds the textures and a summary of the cell's patch embeddings, so that it knows what the
region is and what the cell itself is like. The preview's tokens stay in the sequence as coarse
context for the places where no cell was chosen, each at the centre of the area it shows, in the
frame of the full image: a thing that is read twice is counted twice. In go patch rows and grids,
out come features per cell of the *full* grid, and the preview's tokens.
Left out: the tower itself (`vision.py`), and what is done with the choice (`reduce.py`).

Shapes: N cells of all images, H x W cells of one image, M preview cells of one image, P patches of
a cell, D width, C texture channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.models.relevance.grids import CellGrid, box_mean
from saccade.models.relevance.prune import ImageTokens
from saccade.models.relevance.textures import CHANNELS, PatchLayout, Textures, shrink_pixels
from saccade.models.relevance.vision import ImageView, encode_images

SURROUNDINGS = (1, 2)
"""Radii in cells of the means that stand beside each cell's own textures."""
TEXTURE_WIDTH = len(CHANNELS) * (1 + len(SURROUNDINGS))


def cell_width(base: Any, *, placement: str) -> int:
    """Values per cell that a selector at this placement reads."""
    if placement == "features":
        return base.config.text_config.hidden_size
    vision = base.config.vision_config
    if placement == "glance":
        return base.config.text_config.hidden_size + 2 * vision.hidden_size + TEXTURE_WIDTH
    return vision.hidden_size * vision.spatial_merge_size**2 + TEXTURE_WIDTH


def measured_width(base: Any, *, placement: str) -> int:
    """How many of these values information and salience measure, counted from the first.

    What stands out in a preview are things; among the patches and textures beside it, edges.
    """
    if placement == "glance":
        return base.config.text_config.hidden_size
    return cell_width(base, placement=placement)


@dataclass(frozen=True)
class Preview:
    """A small version of every image as the tower sees it: tokens and grid sizes per image."""

    tokens: ImageTokens
    sizes: tuple[tuple[int, int], ...]

    @property
    def counts(self) -> list[int]:
        return [h * w for h, w in self.sizes]


def preview_size(size: tuple[int, int], *, scale: float) -> tuple[int, int]:
    """Rows and columns of the preview of an image of `size` cells; at least one each."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@torch.no_grad()
def take_preview(
    base: Any, pixels_ND: Tensor, grid_I3: Tensor, *, scale: float, layout: PatchLayout
) -> Preview:
    """Shrink every image to `scale` of its side and encode it."""
    thw = [(int(t), int(h), int(w)) for t, h, w in grid_I3.tolist()]
    small = []
    for rows_ND, size in zip(pixels_ND.split(grid_I3.prod(-1).tolist()), thw, strict=True):
        cells = (size[1] // layout.merge, size[2] // layout.merge)
        target = preview_size(cells, scale=scale)
        small.append(shrink_pixels(rows_ND, grid_thw=size, target=target, layout=layout))
    sizes = torch.tensor([size for _, size in small], device=grid_I3.device)
    encoded = encode_images(base, torch.cat([pixels for pixels, _ in small]), sizes)
    merge = layout.merge
    return Preview(encoded.tokens, tuple((h // merge, w // merge) for _, (_, h, w) in small))


def uncovered(preview: Preview, keeps: Sequence[Tensor]) -> list[Tensor]:
    """[M] per image: True for the preview's cells in whose area no cell of `keeps` [H, W] lies."""
    return [
        F.adaptive_max_pool2d(keep_HW[None].float(), size)[0].flatten() == 0
        for keep_HW, size in zip(keeps, preview.sizes, strict=True)
    ]


def texture_features(textures: Textures, grid: CellGrid) -> Tensor:
    """[N, TEXTURE_WIDTH]: each cell's channels and their means over its surroundings."""
    channels_IHWC = grid.pad(textures.channels_NC)
    around = [box_mean(channels_IHWC, grid.valid_IHW, radius=radius) for radius in SURROUNDINGS]
    return torch.cat([textures.channels_NC, *(grid.pack(one) for one in around)], dim=-1)


@torch.no_grad()
def patch_features(base: Any, view: ImageView) -> Tensor:
    """[N, merge^2, D]: the frozen embeddings of each cell's patches, normalised cell by cell."""
    tower = base.model.visual
    embedded = tower.patch_embed(view.distinct_pixels_ND.type(tower.dtype)).float()
    merge = base.config.vision_config.spatial_merge_size
    # patch rows come merge block by merge block: a cell's patches stand together
    cells = embedded.reshape(len(embedded) // merge**2, -1)
    normed = view.spread(F.layer_norm(cells, cells.shape[-1:]), merge=merge)
    return normed.unflatten(-1, (merge**2, -1))


def patch_summary(patches_NPD: Tensor) -> Tensor:
    """[N, 2 D]: mean and largest value over a cell's P patches; half as wide as all of them."""
    return torch.cat([patches_NPD.mean(1), patches_NPD.amax(1)], dim=-1)


def preview_features(preview: Preview, grid: CellGrid) -> Tensor:
    """[N, D]: the preview's tokens, normalised, spread over the full grid (bilinear)."""
    spread = []
    for rows_MD, (h, w), size in zip(preview.tokens.pooled, preview.sizes, grid.sizes, strict=True):
        normed_MD = F.layer_norm(rows_MD.float(), rows_MD.shape[-1:])
        plane_1Dhw = normed_MD.T.reshape(1, -1, h, w)
        full_1DHW = F.interpolate(plane_1Dhw, size=size, mode="bilinear", align_corners=False)
        spread.append(full_1DHW.flatten(2)[0].T)
    return torch.cat(spread)


def preview_positions(full_3N: Tensor, *, size: tuple[int, int], small: tuple[int, int]) -> Tensor:
    """[3, M]: M-RoPE positions of the preview's cells: centres of what they show, fractional.

    `full_3N` are the positions of the image's own `size` cells in raster order.
    """
    plane_3HW = full_3N.float().reshape(3, *size)
    # an axis-aligned grid: the first row and column say everything
    t, top, left = (float(value) for value in plane_3HW[:, 0, 0])
    y = (torch.arange(small[0], device=full_3N.device) + 0.5) * size[0] / small[0] - 0.5
    x = (torch.arange(small[1], device=full_3N.device) + 0.5) * size[1] / small[1] - 0.5
    rows, columns = torch.meshgrid(y + top, x + left, indexing="ij")
    return torch.stack([torch.full_like(rows, t), rows, columns]).flatten(1)
