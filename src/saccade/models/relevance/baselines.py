"""Selectors to beat, behind the interface of the trained one.

An arm either ranks cells (`rank`: higher is kept) or replaces an image's tokens (`pool`,
`resize`). All are per image, deterministic given (seed, sample id), and spend at most K tokens.
Left out: peers re-implemented from papers.

Shapes: N cells of all images, H x W cells of one image, D width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.models.relevance.allocate import lattice
from saccade.models.relevance.grids import CellGrid
from saccade.models.relevance.textures import PatchLayout, Textures, patchify, unpatchify


@dataclass(frozen=True)
class ArmInfo:
    """One selector: how it works and what it needs."""

    name: str
    title: str
    how: Literal["keep_all", "trained", "rank", "pool", "resize"]
    query_aware: bool = False
    random: bool = False
    trained: bool = False


ARMS: dict[str, ArmInfo] = {
    arm.name: arm
    for arm in (
        ArmInfo("trained", "trained selector", "trained", query_aware=True, trained=True),
        ArmInfo("full", "all tokens", "keep_all"),
        ArmInfo("random", "random cells", "rank", random=True),
        ArmInfo("grid", "uniform grid", "rank"),
        ArmInfo("pool", "average pooling", "pool"),
        ArmInfo("resize", "resized image", "resize"),
        ArmInfo("saliency", "pixel saliency", "rank"),
        ArmInfo("information", "information alone", "rank", trained=True),
        ArmInfo("salience", "salience alone", "rank", trained=True),
        ArmInfo("participation", "participation alone", "rank", query_aware=True, trained=True),
    )
}


def random_scores(grid: CellGrid, *, seed: int, image_ids: list[str]) -> Tensor:
    """Uniform scores; image `id` gets the same draw in any batch."""
    draws = []
    for cells, name in zip(grid.counts, image_ids, strict=True):
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        draws.append(torch.rand(cells, generator=generator))
    return torch.cat(draws)


def grid_scores(grid: CellGrid, *, kept: list[int]) -> Tensor:
    """1 on a lattice of at most K cells nearest to the image's aspect, 0 elsewhere.

    A lattice of a x b cells rarely has exactly K; the rest of the budget goes to the first cells
    that a van der Corput sequence names, so that every arm keeps the same number.
    """
    maps = []
    for (h, w), k in zip(grid.sizes, kept, strict=True):
        rows, columns = lattice(h, w, kept=k)
        y = ((torch.arange(rows) + 0.5) * h / rows).long()
        x = ((torch.arange(columns) + 0.5) * w / columns).long()
        scores_HW = torch.zeros(h, w)
        scores_HW[y[:, None], x[None, :]] = 2.0
        flat = scores_HW.flatten()
        filler = torch.tensor([_van_der_corput(i) for i in range(1, h * w + 1)])
        maps.append(flat + 0.5 * filler)
    return torch.cat(maps)


def _van_der_corput(number: int) -> float:
    value, base = 0.0, 0.5
    while number:
        number, bit = divmod(number, 2)
        value += bit * base
        base /= 2
    return value


def saliency_scores(textures: Textures) -> Tensor:
    """Query-free, training-free: centre-surround colour contrast plus gradient energy."""
    return textures.channel("saliency") + textures.channel("gradient")


def pool_rows(rows_ND: Tensor, *, size: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Average an image's tokens down to `target` = (a, b) cells."""
    plane_1DHW = rows_ND.T.reshape(1, -1, *size)
    return F.adaptive_avg_pool2d(plane_1DHW, target).flatten(2)[0].T


def pool_positions(
    positions_3N: Tensor, *, size: tuple[int, int], target: tuple[int, int]
) -> Tensor:
    """Centre positions (fractional) of the pooled cells; [3, a * b] float."""
    return pool_rows(positions_3N.T.float(), size=size, target=target).T


def resize_pixels(
    pixels_ND: Tensor, *, grid_thw: tuple[int, int, int], kept: int, layout: PatchLayout
) -> tuple[Tensor, tuple[int, int, int]]:
    """The image shrunk (antialiased bicubic) to at most `kept` merged cells, as patch rows.

    The largest size whose sides are whole cells, nearest to the aspect; never enlarged.
    """
    image_3HW = unpatchify(pixels_ND.float(), grid_thw, layout)
    _, height, width = image_3HW.shape
    cell = layout.cell_px
    rows, columns = lattice(height // cell, width // cell, kept=kept)
    small = F.interpolate(
        image_3HW[None], size=(rows * cell, columns * cell), mode="bicubic",
        antialias=True, align_corners=False,
    )[0]  # fmt: skip
    low, high = image_3HW.amin(), image_3HW.amax()  # bicubic overshoots; pixels cannot
    thw = (1, rows * layout.merge, columns * layout.merge)
    return patchify(small.clamp(low, high), layout), thw
