"""Run the vision tower on a batch of images: all of it once, or only chosen cells of it.

In go patch rows and grids; out come every image's merged tokens and DeepStack rows. Batches keep
the questions about an image together, so equal images stand side by side; they are recognised by
their pixels and encoded a single time. `encode_cells` runs the tower on the chosen 2x2 merge
blocks alone, at the positions they have in the whole image: the same as a tower whose attention
masks all other patches, and bit-equal to the whole when every cell is chosen.

Shapes: N patches and C cells of all images, D patch values, I images, J distinct images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from saccade.config.errors import InputError
from saccade.models.relevance.prune import ImageTokens
from saccade.models.relevance.textures import PatchLayout, Textures, compute_textures

if TYPE_CHECKING:
    from saccade.models.relevance.feature_cache import FeatureCache


class ImageView:
    """The images of one batch before the tower: encoded whole when asked for, at most once."""

    def __init__(
        self,
        base: Any,
        pixels_ND: Tensor,
        grid_I3: Tensor,
        *,
        reuse: bool = True,
        cache: FeatureCache | None = None,
    ) -> None:
        self.base, self.pixels_ND, self.grid_I3 = base, pixels_ND, grid_I3
        self.cache = cache
        self.distinct_pixels_ND, self.distinct_grid_J3, self.distinct_of = (
            _distinct(pixels_ND, grid_I3)
            if reuse
            else (pixels_ND, grid_I3, list(range(len(grid_I3))))
        )
        self.caught: dict[str, Any] = {}
        """What was caught inside the tower on the way, by what for; shared by all budgets."""

    @functools.cached_property
    def tokens(self) -> ImageTokens:
        """Every cell of every image."""
        if self.cache is None:
            pixels_ND, grid_J3 = self.distinct_pixels_ND, self.distinct_grid_J3
            once = encode_images(self.base, pixels_ND, grid_J3, reuse=False).tokens
            return once.pick(self.distinct_of)

        def encode_one(image: int) -> dict[str, Tensor]:
            one = encode_images(self.base, *self._distinct_image(image)).tokens
            levels = {f"deepstack.{i}": level[0] for i, level in enumerate(one.deepstack)}
            return {"pooled": one.pooled[0], **levels}

        found = self._remember("tokens", encode_one)
        levels = [f"deepstack.{i}" for i in range(len(found[0]) - 1)]
        return ImageTokens(
            pooled=tuple(one["pooled"] for one in found),
            deepstack=tuple(tuple(one[name] for one in found) for name in levels),
        ).pick(self.distinct_of)

    def textures(self, layout: PatchLayout) -> Textures:
        """Textures of every cell of every image, in float32 whatever the training's precision."""
        with torch.autocast(self.pixels_ND.device.type, enabled=False):
            if self.cache is None:
                of_distinct = compute_textures(
                    self.distinct_pixels_ND, self.distinct_grid_J3, layout=layout
                )
            else:
                found = self._remember(
                    "textures",
                    lambda j: vars(compute_textures(*self._distinct_image(j), layout=layout)),
                )
                names = found[0]
                of_distinct = Textures(**{n: torch.cat([one[n] for one in found]) for n in names})
        return of_distinct.map(lambda values: self.spread(values, merge=layout.merge))

    def _remember(
        self, part: str, compute: Callable[[int], dict[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        assert self.cache is not None
        return self.cache.remember(part, self._digests, compute, device=self.pixels_ND.device)

    @functools.cached_property
    def _digests(self) -> list[str]:
        assert self.cache is not None
        return self.cache.digests(self.distinct_pixels_ND, self.distinct_grid_J3)

    @functools.cached_property
    def _distinct_rows(self) -> tuple[Tensor, ...]:
        return self.distinct_pixels_ND.split(self.distinct_grid_J3.prod(-1).tolist())

    def _distinct_image(self, image: int) -> tuple[Tensor, Tensor]:
        return self._distinct_rows[image], self.distinct_grid_J3[image : image + 1]

    @torch.no_grad()
    def encode(self, keep_C: Tensor) -> ImageTokens:
        """The chosen cells alone; images of one batch may differ in what is chosen."""
        return encode_cells(self.base, self.pixels_ND, self.grid_I3, keep_C)

    def spread(self, values_C: Tensor, *, merge: int) -> Tensor:
        """Per-cell values of the distinct images -> of all images."""
        counts = (self.distinct_grid_J3.prod(-1) // merge**2).tolist()
        parts = values_C.split(counts)
        return torch.cat([parts[j] for j in self.distinct_of])


@dataclass(frozen=True)
class EncodedImages:
    """Tokens per image; `distinct_of[i]` is image i's row among the distinct ones."""

    tokens: ImageTokens
    pixels_ND: Tensor
    grid_J3: Tensor
    distinct_of: list[int]


@torch.no_grad()
def encode_images(
    base: Any, pixels_ND: Tensor, grid_I3: Tensor, *, reuse: bool = True
) -> EncodedImages:
    """The frozen tower's features of every image of a packed batch.

    Without `reuse` identical neighbours are encoded again and again, which only a benchmark wants.
    """
    grid_J3, distinct_of = grid_I3, list(range(len(grid_I3)))
    if reuse:
        pixels_ND, grid_J3, distinct_of = _distinct(pixels_ND, grid_I3)
    out = base.model.get_image_features(pixels_ND, grid_J3, return_dict=True)
    # families before Qwen3-VL have no DeepStack
    levels = getattr(out, "deepstack_features", None) or []
    tokens = ImageTokens(
        pooled=tuple(out.pooler_output[j] for j in distinct_of),
        deepstack=tuple(tuple(level[j] for j in distinct_of) for level in levels),
    )
    return EncodedImages(tokens, pixels_ND, grid_J3, distinct_of)


def encode_cells(base: Any, pixels_ND: Tensor, grid_I3: Tensor, keep_C: Tensor) -> ImageTokens:
    """Tokens of the cells where `keep_C` (all images packed) is True; at least one per image.

    Raises InputError for towers that cannot be told positions (before Qwen3-VL their windows
    reorder patches).
    """
    tower = base.model.visual
    if not hasattr(tower, "interpolation_mode"):
        raise InputError(
            f"{base.config.model_type} cannot encode a part of an image"
            "\n  fix: selector.placement=features, or a Qwen3-VL base"
        )
    merge = tower.spatial_merge_size
    indices_N4, weights_N4 = get_vision_interpolation_indices_and_weights(
        grid_I3,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=merge,
    )
    positions_N2 = get_vision_position_ids(grid_I3, merge)
    cells = (grid_I3.prod(-1) // merge**2).tolist()
    counts = [int(part.sum()) for part in keep_C.split(cells)]
    ends = torch.tensor(counts, device=keep_C.device).cumsum(0) * merge**2
    chosen_N = keep_C.repeat_interleave(merge**2)
    out = tower(
        pixels_ND[chosen_N].type(tower.dtype),
        grid_thw=grid_I3,
        position_ids=positions_N2[chosen_N],
        interp_indices=indices_N4[chosen_N],
        interp_weights=weights_N4[chosen_N],
        cu_seqlens=torch.nn.functional.pad(ends, (1, 0)).to(torch.int32),
        max_seqlen=max(counts) * merge**2,
        return_dict=True,
    )
    return ImageTokens(
        pooled=out.pooler_output.split(counts),
        deepstack=tuple(level.split(counts) for level in out.deepstack_features),
    )


def _distinct(pixels_ND: Tensor, grid_I3: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Collapse identical images, neighbours or not (several images per question alternate)."""
    parts = pixels_ND.split(grid_I3.prod(-1).tolist())
    chosen: list[int] = []
    distinct_of: list[int] = []
    for image, part in enumerate(parts):
        nearest = reversed(range(len(chosen)))
        same = next((j for j in nearest if _same(part, parts[chosen[j]])), None)
        if same is None:
            same = len(chosen)
            chosen.append(image)
        distinct_of.append(same)
    if len(chosen) == len(parts):
        return pixels_ND, grid_I3, distinct_of
    return torch.cat([parts[i] for i in chosen]), grid_I3[chosen], distinct_of


def _same(a_ND: Tensor, b_ND: Tensor) -> bool:
    # a cheap glance first: most different images differ in size or in their first row
    return a_ND.shape == b_ND.shape and torch.equal(a_ND[0], b_ND[0]) and torch.equal(a_ND, b_ND)
