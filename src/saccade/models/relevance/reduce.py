"""Run any arm: from full inputs and a budget to what the language model will read.

In go a batch, its visual features, an arm and per-image budgets; out come reduced language-model
inputs and a record per image of what was kept, for counting and for pictures. Resizing encodes
the smaller image anew; pooling averages tokens and DeepStack rows alike and gives them centre
positions; everything else drops tokens.

Shapes: N cells of all images, H x W cells of one image, I images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saccade.config.errors import InputError
from saccade.models.relevance import baselines
from saccade.models.relevance.allocate import lattice, top_k
from saccade.models.relevance.baselines import ArmInfo
from saccade.models.relevance.prune import (
    LanguageInputs,
    drop_tokens,
)
from saccade.models.relevance.selector import Scored
from saccade.models.relevance.vision import encode_images

if TYPE_CHECKING:
    from saccade.models.relevance.model import RelevanceModel, VisualFeatures


@dataclass(frozen=True)
class ImageSelection:
    """What happened to one image: `keep_HW` is None when tokens were replaced, not chosen."""

    full: int
    kept: int
    grid: tuple[int, int]
    keep_HW: Tensor | None


@dataclass(frozen=True)
class Reduced:
    """Reduced inputs with the choice that led to them; maps are empty for untrained arms."""

    inputs: LanguageInputs
    images: list[ImageSelection]
    maps: list[dict[str, Tensor]]
    tensions: list[dict[str, float]]

    @property
    def sequence_lengths(self) -> list[int]:
        return self.inputs.lengths


def reduce_with_arm(
    model: RelevanceModel,
    batch: Mapping[str, Any],
    features: VisualFeatures,
    *,
    arm: ArmInfo,
    kept: list[int],
    seed: int,
) -> Reduced:
    """Apply `arm` with `kept[i]` cells for image i."""
    grid = features.grid
    if arm.how == "pool":
        return _pooled(model, features, kept=kept)
    if arm.how == "resize":
        return _resized(model, batch, features, kept=kept)
    scored = model.score(features, kept=kept) if arm.trained else None
    if arm.how == "keep_all":
        keep_N = torch.ones(sum(grid.counts), dtype=torch.bool, device=model.device)
    else:
        scores_N = _scores(model, batch, features, scored, arm=arm, kept=kept, seed=seed)
        keep_N = top_k(scores_N.to(model.device), cells=grid.counts, kept=kept)
    markers = model.markers
    inputs = drop_tokens(features.inputs, keep_N, image_token=markers.image, pad_token=markers.pad)
    chosen = [
        ImageSelection(full=h * w, kept=int(keep_HW.sum()), grid=(h, w), keep_HW=keep_HW)
        for keep_HW, (h, w) in zip(grid.split(keep_N), grid.sizes, strict=True)
    ]
    return Reduced(
        inputs,
        chosen,
        maps=_maps(features, scored),
        tensions=scored.tensions() if scored is not None else [],
    )


def _scores(
    model: RelevanceModel,
    batch: Mapping[str, Any],
    features: VisualFeatures,
    scored: Scored | None,
    *,
    arm: ArmInfo,
    kept: list[int],
    seed: int,
) -> Tensor:
    grid = features.grid
    if arm.name == "random":
        rows = features.sample_of_image_I.tolist()
        names = batch.get("sample_ids") or [str(row) for row in range(max(rows) + 1)]
        ids = [f"{names[row]}/{rows[:i].count(row)}" for i, row in enumerate(rows)]
        return baselines.random_scores(grid, seed=seed, image_ids=ids)
    if arm.name == "grid":
        return baselines.grid_scores(grid, kept=kept)
    if arm.name == "saliency":
        return baselines.saliency_scores(features.textures)
    assert scored is not None
    if arm.name == "trained":
        return scored.logits_N
    if arm.name not in scored.maps:
        raise InputError(
            f"this selector was trained without the score {arm.name!r}"
            f"\n  fix: leave it out of eval.arms (it has {', '.join(scored.maps)})"
        )
    return scored.maps[arm.name]


def _maps(features: VisualFeatures, scored: Scored | None) -> list[dict[str, Tensor]]:
    if scored is None:
        return []
    named = {"balance": scored.logits_N, **scored.maps}
    named |= {f"weight_{name}": values for name, values in scored.weights.items()}
    split = {name: features.grid.split(values) for name, values in named.items()}
    return [
        {name: maps[i] for name, maps in split.items()} for i in range(len(features.grid.sizes))
    ]


def _pooled(model: RelevanceModel, features: VisualFeatures, *, kept: list[int]) -> Reduced:
    """Average pooling: the first a x b placeholders of each image carry the pooled tokens."""
    inputs, grid = features.inputs, features.grid
    assert inputs.images is not None
    targets = [lattice(h, w, kept=k) for (h, w), k in zip(grid.sizes, kept, strict=True)]
    keep_N = _first_cells(grid.counts, [a * b for a, b in targets], device=model.device)
    positions_3BL = inputs.positions_3BS.float()
    image_BL = inputs.input_ids_BS == model.markers.image
    packed_3N = positions_3BL[:, image_BL]
    pieces = []
    for i, part_3N in enumerate(packed_3N.split(grid.counts, dim=1)):
        pooled_3A = baselines.pool_positions(part_3N, size=grid.sizes[i], target=targets[i])
        rest = part_3N.shape[1] - pooled_3A.shape[1]
        pieces.append(torch.nn.functional.pad(pooled_3A, (0, rest)))
    positions_3BL = positions_3BL.clone()
    positions_3BL[:, image_BL] = torch.cat(pieces, dim=1)
    markers = model.markers
    dropped = drop_tokens(
        replace(inputs, positions_3BS=positions_3BL), keep_N,
        image_token=markers.image, pad_token=markers.pad,
    )  # fmt: skip
    images = inputs.images.map(
        lambda i, rows: baselines.pool_rows(rows, size=grid.sizes[i], target=targets[i])
    )
    return _replaced(replace(dropped, images=images), features, targets)


def _resized(
    model: RelevanceModel, batch: Mapping[str, Any], features: VisualFeatures, *, kept: list[int]
) -> Reduced:
    """Shrink the pixels, encode again, and let the small image have its own native positions."""
    inputs, grid = features.inputs, features.grid
    thw = [tuple(row) for row in batch["image_grid_thw"].tolist()]
    parts = batch["pixel_values"].split([t * h * w for t, h, w in thw])
    small = [
        baselines.resize_pixels(part, grid_thw=size, kept=k, layout=model.layout)  # type: ignore
        for part, size, k in zip(parts, thw, kept, strict=True)
    ]
    merge = model.layout.merge
    targets = [(h // merge, w // merge) for _, (_, h, w) in small]
    grid_I3 = torch.tensor([size for _, size in small], device=model.device)
    encoded = encode_images(model.base, torch.cat([pixels for pixels, _ in small]), grid_I3)
    markers = model.markers
    keep_N = _first_cells(grid.counts, [a * b for a, b in targets], device=model.device)
    short = drop_tokens(inputs, keep_N, image_token=markers.image, pad_token=markers.pad)
    positions_3BS, _ = model.base.model.get_rope_index(
        short.input_ids_BS,
        mm_token_type_ids=(short.input_ids_BS == markers.image).int(),
        image_grid_thw=grid_I3,
        attention_mask=short.attention_mask_BS,
    )
    inputs = replace(short, images=encoded.tokens, positions_3BS=positions_3BS)
    return _replaced(inputs, features, targets)


def _first_cells(cells: list[int], kept: list[int], *, device: torch.device) -> Tensor:
    return torch.cat([torch.arange(n, device=device) < k for n, k in zip(cells, kept, strict=True)])


def _replaced(
    inputs: LanguageInputs, features: VisualFeatures, targets: list[tuple[int, int]]
) -> Reduced:
    chosen = [
        ImageSelection(full=cells, kept=a * b, grid=size, keep_HW=None)
        for cells, size, (a, b) in zip(
            features.grid.counts, features.grid.sizes, targets, strict=True
        )
    ]
    return Reduced(inputs, chosen, maps=[], tensions=[])
