"""Selectors to beat, behind the interface of the trained one.

An arm either ranks cells (`rank`: higher is kept) or replaces an image's tokens (`pool`,
`resize`). All are per image, deterministic given (seed, sample id), and spend at most K tokens.
Left out: peers re-implemented from papers.

Shapes: N cells of all images, H x W cells of one image, D width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.config.errors import InputError
from saccade.models.relevance.allocate import lattice
from saccade.models.relevance.grids import CellGrid
from saccade.models.relevance.textures import PatchLayout, Textures, shrink_pixels


@dataclass(frozen=True)
class ArmInfo:
    """One selector: how it works and what it needs."""

    name: str
    title: str
    how: Literal["keep_all", "trained", "rank", "pool", "resize", "merge", "inside"]
    query_aware: bool = False
    random: bool = False
    trained: bool = False
    set_step: bool = False

    @property
    def plain(self) -> str:
        """The name without `+mmr`."""
        return self.name.removesuffix(SET_STEP)


SET_STEP = "+mmr"
"""Suffix that puts a set-diversity step (maximal marginal relevance) on top of a ranking."""
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
        # published methods, re-implemented; see docs/concepts/peers.md
        ArmInfo("vision_attention", "ViT attention + merging (VisionZip-like)", "merge"),
        ArmInfo("vision_attention_drop", "ViT attention (VisionZip, dominant only)", "rank"),
        ArmInfo("early_attention", "attention of layer 2 (FastV-like)", "inside", query_aware=True),
        ArmInfo("max_min_diversity", "max-min diversity (DivPrune-like)", "rank"),
        ArmInfo("dpp", "conditional DPP (CDPruner-like)", "rank", query_aware=True),
        ArmInfo("scope", "saliency x coverage (SCOPE-like)", "rank"),
    )
}
WITHOUT_SET_STEP = ("full", "grid", "pool", "resize", "max_min_diversity", "dpp", "scope")
"""Selectors that `+mmr` cannot change: they have no score per cell, or choose a set already."""


def find_arm(name: str) -> ArmInfo:
    """The selector of that name, `NAME+mmr` included; InputError when there is none."""
    plain = name.removesuffix(SET_STEP)
    if plain not in ARMS:
        raise InputError(f"unknown selector {name!r}\n  fix: use one of {', '.join(ARMS)}")
    if plain == name:
        return ARMS[name]
    if plain in WITHOUT_SET_STEP:
        able = ", ".join(arm for arm in ARMS if arm not in WITHOUT_SET_STEP)
        raise InputError(
            f"{name}: {plain} has no ranking that a set step could change"
            f"\n  fix: use {SET_STEP} with one of {able}"
        )
    found = ARMS[plain]
    return replace(found, name=name, title=f"{found.title} + MMR", set_step=True)


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
    _, height, width = grid_thw
    target = lattice(height // layout.merge, width // layout.merge, kept=kept)
    return shrink_pixels(pixels_ND, grid_thw=grid_thw, target=target, layout=layout)
