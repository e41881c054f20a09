"""Run any arm: from full inputs and a budget to what the language model will read.

In go a batch, its visual features, an arm and per-image budgets; out come reduced language-model
inputs and a record per image of what was kept, for counting and for pictures. Resizing encodes
the smaller image anew; pooling averages tokens and DeepStack rows alike and gives them centre
positions; everything else drops tokens, and with a placement before the tower only the chosen
cells are ever encoded. `keep_cells` is the choice alone, for whoever drops the tokens elsewhere.

Shapes: N cells of all images, H x W cells of one image, I images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.config.errors import InputError
from saccade.config.schema import SelectorConfig
from saccade.models.relevance import baselines, peers
from saccade.models.relevance.allocate import lattice, top_k
from saccade.models.relevance.baselines import ArmInfo
from saccade.models.relevance.detail import plan_detail
from saccade.models.relevance.glance import preview_positions, uncovered
from saccade.models.relevance.grids import CellGrid
from saccade.models.relevance.prune import (
    ImageTokens,
    LanguageInputs,
    drop_tokens,
    insert_tokens,
)
from saccade.models.relevance.selector import Scored
from saccade.models.relevance.vision import encode_images

if TYPE_CHECKING:
    from saccade.models.relevance.model import RelevanceModel, VisualFeatures


REPLACING = ("pool", "resize", "merge", "inside")
"""Ways of selectors that do not only drop the tokens of cells."""


@dataclass(frozen=True)
class ImageSelection:
    """What happened to one image: `keep_HW` is None when tokens were replaced, not chosen.

    `kept` counts all visual tokens that the language model reads, coarse context included;
    `encoded` the cells of each pass of the vision tower over this image.
    """

    full: int
    kept: int
    grid: tuple[int, int]
    keep_HW: Tensor | None
    encoded: tuple[int, ...]


@dataclass(frozen=True)
class Reduced:
    """Reduced inputs with the choice that led to them; maps are empty for untrained arms.

    A selector that drops inside the language model gives full inputs: it works while `during` is
    entered, and `late_lengths` are the rows' lengths in the layers after the drop.
    """

    inputs: LanguageInputs
    images: list[ImageSelection]
    maps: list[dict[str, Tensor]]
    tensions: list[dict[str, float]]
    late_lengths: list[int] | None = None
    during: Callable[[], AbstractContextManager[Any]] = nullcontext

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
    if arm.how == "pool":
        return _pooled(model, features, kept=kept)
    if arm.how == "resize":
        return _resized(model, batch, features, kept=kept)
    if arm.how in ("merge", "inside"):
        from saccade.models.relevance.peer_reduce import reduce_with_peer  # builds on this module

        return reduce_with_peer(model, features, arm=arm, kept=kept)
    scored, kept = _scored(model, features, arm=arm, kept=kept)
    if arm.name == "trained" and model.selector_config.coarse != 0 and scored is not None:
        inputs, chosen = _choose_detail(model, features, scored, kept=kept)
    else:
        keep_N = _kept(model, batch, features, scored, arm=arm, kept=kept, seed=seed)
        choose = _choose_early if _is_early(model, arm) else _choose
        inputs, chosen = choose(model, features, keep_N)
    return Reduced(
        inputs,
        chosen,
        maps=_maps(features, scored),
        tensions=scored.tensions() if scored is not None else [],
    )


@torch.no_grad()
def keep_cells(
    model: RelevanceModel, batch: Mapping[str, Any], *, arm: ArmInfo, seed: int = 0
) -> tuple[Tensor, ImageTokens]:
    """Which cells a selector keeps at its own budget, [N], and their tokens.

    Raises InputError for one that does more than drop (`refuse_replacing`).
    """
    refuse_replacing(arm, config=model.selector_config)
    features = model.encode(batch)
    kept = model.budgets(features.grid, 1.0 if arm.how == "keep_all" else None)
    scored, kept = _scored(model, features, arm=arm, kept=kept)
    keep_N = _kept(model, batch, features, scored, arm=arm, kept=kept, seed=seed)
    if _is_early(model, arm):
        return keep_N, features.view.encode(keep_N)
    return keep_N, features.view.tokens.kept(keep_N)


def refuse_replacing(arm: ArmInfo, *, config: SelectorConfig) -> None:
    """Raises InputError for a selector that puts other tokens in the place of those it drops."""
    replaces = arm.how in REPLACING
    if arm.trained:
        replaces = config.placement == "glance" or config.coarse != 0
    if replaces:
        raise InputError(
            f"selector {arm.name}: does not only drop visual tokens, it puts others in their place"
            "\n  fix: use a trained selector with placement features or pixels and coarse=0, or one"
            " of grid, random, saliency, vision_attention_drop, max_min_diversity, dpp, scope"
        )


def _scored(
    model: RelevanceModel, features: VisualFeatures, *, arm: ArmInfo, kept: list[int]
) -> tuple[Scored | None, list[int]]:
    """What a trained selector says, and the budgets after it has moved them."""
    if not arm.trained:
        return None, kept
    scored = model.score(features, kept=kept)
    moved_I = None
    if arm.plain == "trained":
        moved_I = model.adapt(scored, kept, cells=features.grid.counts)
    return scored, kept if moved_I is None else [round(k) for k in moved_I.tolist()]


def _kept(
    model: RelevanceModel,
    batch: Mapping[str, Any],
    features: VisualFeatures,
    scored: Scored | None,
    *,
    arm: ArmInfo,
    kept: list[int],
    seed: int,
) -> Tensor:
    """Boolean [N]: the cells that stay."""
    cells = features.grid.counts
    if arm.how == "keep_all":
        return torch.ones(sum(cells), dtype=torch.bool, device=model.device)
    scores_N = _scores(model, batch, features, scored, arm=arm, kept=kept, seed=seed)
    own = model.selector_config.set_step if arm.name == "trained" else None
    scores_N = peers.with_set_step(scores_N, features, arm=arm, kept=kept, relevance=own)
    return top_k(scores_N.to(model.device), cells=cells, kept=kept)


def _is_early(model: RelevanceModel, arm: ArmInfo) -> bool:
    """Whether the choice is made before the vision tower."""
    return arm.trained and model.selector_config.placement != "features"


def _choose(
    model: RelevanceModel, features: VisualFeatures, keep_N: Tensor
) -> tuple[LanguageInputs, list[ImageSelection]]:
    """Drop tokens of images that were encoded whole."""
    grid, markers = features.grid, model.markers
    inputs = drop_tokens(features.whole(), keep_N, image_token=markers.image, pad_token=markers.pad)
    chosen = [
        ImageSelection(
            full=h * w, kept=int(keep_HW.sum()), grid=(h, w), keep_HW=keep_HW, encoded=(h * w,)
        )
        for keep_HW, (h, w) in zip(grid.split(keep_N), grid.sizes, strict=True)
    ]
    return inputs, chosen


def _choose_detail(
    model: RelevanceModel, features: VisualFeatures, scored: Scored, *, kept: list[int]
) -> tuple[LanguageInputs, list[ImageSelection]]:
    """Chosen cells as they are, pooled tokens for the rest (`detail.py`)."""
    config, grid, markers = model.selector_config, features.grid, model.markers
    if config.coarse == "tension":
        shares = scored.tension_I3[:, 0].tolist()
    else:
        shares = [config.coarse] * len(kept)
    plans = [
        plan_detail(
            scores_HW, kept=k, coarse_share=share, region=config.region,
            max_per_region=config.max_per_region,
        )
        for scores_HW, k, share in zip(grid.split(scored.logits_N), kept, shares, strict=True)
    ]  # fmt: skip
    whole = features.whole()

    def place(i: int, own_3N: Tensor) -> Tensor:
        placed_3N = own_3N.clone()
        placed_3N[:, plans[i].first_N] = plans[i].pool(own_3N.T).T
        return placed_3N

    assert whole.images is not None
    images = whole.images.map(lambda i, rows: plans[i].pool(rows))
    inputs = drop_tokens(
        _moved(whole, grid, place, image_token=markers.image),
        torch.cat([plan.first_N for plan in plans]),
        image_token=markers.image, pad_token=markers.pad,
    )  # fmt: skip
    chosen = [
        ImageSelection(
            full=h * w, kept=plan.fine + plan.coarse, grid=(h, w),
            keep_HW=plan.fine_N.reshape(h, w), encoded=(h * w,),
        )
        for plan, (h, w) in zip(plans, grid.sizes, strict=True)
    ]  # fmt: skip
    return replace(inputs, images=images), chosen


def _choose_early(
    model: RelevanceModel, features: VisualFeatures, keep_N: Tensor
) -> tuple[LanguageInputs, list[ImageSelection]]:
    """Encode the chosen cells alone; a preview stands in for the rest of its image."""
    grid, markers, preview = features.grid, model.markers, features.preview
    keeps = grid.split(keep_N)
    context = [0] * len(keeps)
    inputs, stay_N, before = features.inputs, keep_N, None
    if preview is not None:
        short = [not bool(keep_HW.all()) for keep_HW in keeps]
        inputs = put_preview(model, features, inputs, short=short)
        rest = [
            open_M[: None if wanted else 0]
            for open_M, wanted in zip(uncovered(preview, keeps), short, strict=True)
        ]
        context = [int(open_M.sum()) for open_M in rest]
        stay_N = torch.cat([torch.cat([a, b.flatten()]) for a, b in zip(rest, keeps, strict=True)])
        before = preview.tokens.map(lambda i, rows: rows[: len(rest[i])][rest[i]])
    images = features.view.encode(keep_N)
    inputs = drop_tokens(inputs, stay_N, image_token=markers.image, pad_token=markers.pad)
    chosen = [
        ImageSelection(
            full=h * w, kept=int(keep_HW.sum()) + extra, grid=(h, w), keep_HW=keep_HW,
            encoded=(seen, int(keep_HW.sum())) if seen else (int(keep_HW.sum()),),
        )
        for keep_HW, (h, w), extra, seen in zip(
            keeps, grid.sizes, context, preview.counts if preview else context, strict=True
        )
    ]  # fmt: skip
    return replace(inputs, images=images if before is None else images.after(before)), chosen


def put_preview(
    model: RelevanceModel, features: VisualFeatures, inputs: LanguageInputs, *, short: list[bool]
) -> LanguageInputs:
    """Insert the preview's tokens before the own tokens of every image where `short` is True."""
    preview, grid, markers = features.preview, features.grid, model.markers
    assert preview is not None and inputs.images is not None
    own_3N = inputs.positions_3BS[:, inputs.input_ids_BS == markers.image]
    positions = [
        preview_positions(part_3N, size=size, small=small)[:, : None if wanted else 0]
        for part_3N, size, small, wanted in zip(
            own_3N.split(grid.counts, dim=1), grid.sizes, preview.sizes, short, strict=True
        )
    ]
    counts = [part_3M.shape[1] for part_3M in positions]
    blank = not inputs.images.deepstack and inputs.images.pooled[0].shape[1] == 0
    extra = (
        ImageTokens.blank(counts, device=model.device)
        if blank
        else preview.tokens.map(lambda i, rows: rows[: counts[i]])
    )
    return insert_tokens(inputs, extra, positions, image_token=markers.image, pad_token=markers.pad)


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
    if arm.plain == "random":
        rows = features.sample_of_image_I.tolist()
        names = batch.get("sample_ids") or [str(row) for row in range(max(rows) + 1)]
        ids = [f"{names[row]}/{rows[:i].count(row)}" for i, row in enumerate(rows)]
        return baselines.random_scores(grid, seed=seed, image_ids=ids)
    if arm.plain == "grid":
        return baselines.grid_scores(grid, kept=kept)
    if arm.plain == "saliency":
        return baselines.saliency_scores(features.textures)
    if arm.plain in peers.SCORED_PEERS:
        return peers.peer_scores(model, features, name=arm.plain, kept=kept)
    assert scored is not None
    if arm.plain == "trained":
        return scored.logits_N
    if arm.plain not in scored.maps:
        raise InputError(
            f"this selector was trained without the score {arm.plain!r}"
            f"\n  fix: leave it out of eval.arms (it has {', '.join(scored.maps)})"
        )
    return scored.maps[arm.plain]


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
    inputs, grid = features.whole(), features.grid
    assert inputs.images is not None
    targets = [lattice(h, w, kept=k) for (h, w), k in zip(grid.sizes, kept, strict=True)]
    keep_N = _first_cells(grid.counts, [a * b for a, b in targets], device=model.device)
    markers = model.markers

    def place(i: int, own_3N: Tensor) -> Tensor:
        pooled_3A = baselines.pool_positions(own_3N, size=grid.sizes[i], target=targets[i])
        return F.pad(pooled_3A, (0, own_3N.shape[1] - pooled_3A.shape[1]))

    dropped = drop_tokens(
        _moved(inputs, grid, place, image_token=markers.image), keep_N,
        image_token=markers.image, pad_token=markers.pad,
    )  # fmt: skip
    images = inputs.images.map(
        lambda i, rows: baselines.pool_rows(rows, size=grid.sizes[i], target=targets[i])
    )
    encoded = features.grid.counts
    return _replaced(replace(dropped, images=images), features, targets, encoded=encoded)


def _moved(
    inputs: LanguageInputs,
    grid: CellGrid,
    place: Callable[[int, Tensor], Tensor],
    *,
    image_token: int,
) -> LanguageInputs:
    """The inputs with image i's positions [3, N] replaced by `place(i, positions)`."""
    positions_3BL = inputs.positions_3BS.float().clone()
    image_BL = inputs.input_ids_BS == image_token
    parts = positions_3BL[:, image_BL].split(grid.counts, dim=1)
    positions_3BL[:, image_BL] = torch.cat([place(i, p) for i, p in enumerate(parts)], dim=1)
    return replace(inputs, positions_3BS=positions_3BL)


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
    return _replaced(inputs, features, targets, encoded=[a * b for a, b in targets])


def _first_cells(cells: list[int], kept: list[int], *, device: torch.device) -> Tensor:
    return torch.cat([torch.arange(n, device=device) < k for n, k in zip(cells, kept, strict=True)])


def _replaced(
    inputs: LanguageInputs,
    features: VisualFeatures,
    targets: list[tuple[int, int]],
    *,
    encoded: list[int],
) -> Reduced:
    chosen = [
        ImageSelection(full=h * w, kept=a * b, grid=(h, w), keep_HW=None, encoded=(seen,))
        for (h, w), (a, b), seen in zip(features.grid.sizes, targets, encoded, strict=True)
    ]
    return Reduced(inputs, chosen, maps=[], tensions=[])
