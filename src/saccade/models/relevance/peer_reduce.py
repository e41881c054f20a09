"""Peers that do more than drop: merging cells, and dropping inside the language model.

In go a batch's features and budgets, out comes the same `Reduced` that every selector gives. The
in-stack method hands over full inputs and a context (`Reduced.during`) in which the base drops
tokens after its first layers.

Shapes: M cells of one image, N cells of all images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saccade.models.flops import full_layers
from saccade.models.relevance.allocate import top_k
from saccade.models.relevance.baselines import ArmInfo
from saccade.models.relevance.early import DropInside
from saccade.models.relevance.peers import plan_merge, vision_attention, with_set_step
from saccade.models.relevance.prune import drop_tokens
from saccade.models.relevance.reduce import ImageSelection, Reduced

if TYPE_CHECKING:
    from saccade.models.relevance.model import RelevanceModel, VisualFeatures


def reduce_with_peer(
    model: RelevanceModel, features: VisualFeatures, *, arm: ArmInfo, kept: list[int]
) -> Reduced:
    """Apply a peer that merges cells or drops inside the language model."""
    if arm.how == "merge":
        return _merged(model, features, arm=arm, kept=kept)
    return _inside(model, features, arm=arm, kept=kept)


def _merged(
    model: RelevanceModel, features: VisualFeatures, *, arm: ArmInfo, kept: list[int]
) -> Reduced:
    received, grid, markers = vision_attention(model, features), features.grid, model.markers
    scores_N = with_set_step(received.attention_N, features, arm=arm, kept=kept)
    plans = [
        plan_merge(scores_M, keys_MD, kept=k)
        for scores_M, keys_MD, k in zip(
            scores_N.split(grid.counts), received.keys_ND.split(grid.counts), kept, strict=True
        )
    ]
    inputs = features.whole()
    assert inputs.images is not None
    merged = replace(inputs, images=inputs.images.map(lambda i, rows: plans[i].merge(rows)))
    keep_N = torch.cat([plan.keep_M for plan in plans])
    inputs = drop_tokens(merged, keep_N, image_token=markers.image, pad_token=markers.pad)
    return Reduced(inputs, _selections(features, keep_N), maps=[], tensions=[])


def _inside(
    model: RelevanceModel, features: VisualFeatures, *, arm: ArmInfo, kept: list[int]
) -> Reduced:
    inputs, cells = features.whole(), features.grid.counts

    def choose(received_N: Tensor) -> Tensor:
        scores_N = with_set_step(received_N, features, arm=arm, kept=kept)
        return top_k(scores_N, cells=cells, kept=kept)

    def during() -> DropInside:
        return DropInside(
            model.base, inputs, image_token=model.markers.image,
            full_layers=full_layers(model.config), choose=choose,
        )  # fmt: skip

    if kept == cells:
        keep_N = torch.ones(sum(cells), dtype=torch.bool, device=model.device)
        return Reduced(inputs, _selections(features, keep_N), maps=[], tensions=[])
    selections = _selections(features, during().preview())
    late = list(inputs.lengths)
    rows = features.sample_of_image_I.tolist()
    for row, chosen in zip(rows, selections, strict=True):
        late[row] -= chosen.full - chosen.kept
    return Reduced(inputs, selections, maps=[], tensions=[], late_lengths=late, during=during)


def _selections(features: VisualFeatures, keep_N: Tensor) -> list[ImageSelection]:
    grid = features.grid
    return [
        ImageSelection(
            full=h * w, kept=int(keep_HW.sum()), grid=(h, w), keep_HW=keep_HW, encoded=(h * w,)
        )
        for keep_HW, (h, w) in zip(grid.split(keep_N), grid.sizes, strict=True)
    ]
