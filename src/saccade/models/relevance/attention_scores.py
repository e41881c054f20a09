"""How much attention a cell receives inside the frozen vision tower, and merging by its keys.

In go pixels; out come, per merged cell, the attention it receives in one block of the tower (mean
over heads and over all queries of its image, then over the cell's 4 patches) and its key vector.
Fused kernels return no weights, so the block's input is caught by a hook and its queries and keys
are computed once more; the tower's code is not touched. The block is the second-last one, or, in
towers where that one sees only a window (Qwen2.5-VL), the last that sees the whole image.

Shapes: P patches and M cells of one image, N cells of all images, H heads, D head width, I images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from saccade.models.relevance.vision import encode_images

ELEMENTS_AT_ONCE = 2**24
"""Attention weights held in memory at a time; images above this are done in slices of queries."""


@dataclass(frozen=True)
class BlockInput:
    """What went into one attention block of the tower, per image: [P, H * D] and its rotation.

    A deployed method reads this during the one pass that encodes the image anyway.
    """

    block: Any
    hidden: tuple[Tensor, ...]
    rotation: tuple[tuple[Tensor, Tensor], ...]
    cell_order: tuple[Tensor, ...]
    distinct_of: list[int]


@dataclass(frozen=True)
class Received:
    """Attention received and mean key per cell, packed in raster order of all images."""

    attention_N: Tensor
    keys_ND: Tensor


def observed_block(tower: Any) -> int:
    """Index of the block whose attention ranks cells."""
    depth = len(tower.blocks)
    second_last = max(0, depth - 2)
    whole = getattr(tower, "fullatt_block_indexes", None)  # None: every block sees the whole image
    return second_last if whole is None or second_last in whole else max(whole)


@torch.no_grad()
def catch_block_input(base: Any, pixels_ND: Tensor, grid_I3: Tensor) -> BlockInput:
    """Run the tower and keep what enters the observed block's attention."""
    tower = base.model.visual
    block = tower.blocks[observed_block(tower)].attn
    caught: dict[str, Any] = {}

    def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.update(kwargs, hidden_states=args[0] if args else kwargs["hidden_states"])

    hook = block.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        encoded = encode_images(base, pixels_ND, grid_I3)
    finally:
        hook.remove()
    patches = encoded.grid_J3.prod(-1).tolist()
    cos, sin = caught["position_embeddings"]
    return BlockInput(
        block=block,
        hidden=caught["hidden_states"].split(patches),
        rotation=tuple(zip(cos.split(patches), sin.split(patches), strict=True)),
        cell_order=_cell_orders(tower, encoded.grid_J3),
        distinct_of=encoded.distinct_of,
    )


def received_attention(caught: BlockInput, *, merge: int) -> Received:
    """Attention received and keys of every cell of every image."""
    parts = []
    for hidden_PW, (cos, sin), order_M in zip(
        caught.hidden, caught.rotation, caught.cell_order, strict=True
    ):
        query_HPD, key_HPD, plain_PW = _queries_and_keys(caught.block, hidden_PW, cos, sin)
        mean_P = mean_received(query_HPD, key_HPD, scaling=caught.block.scaling)
        raster_M = order_M.argsort()
        cells_M = mean_P.reshape(-1, merge**2).mean(1)[raster_M]
        keys_MW = plain_PW.float().reshape(len(cells_M), merge**2, -1).mean(1)[raster_M]
        parts.append((cells_M, keys_MW))
    spread = [parts[j] for j in caught.distinct_of]
    return Received(torch.cat([a for a, _ in spread]), torch.cat([k for _, k in spread]))


def mean_received(query_HPD: Tensor, key_HPD: Tensor, *, scaling: float) -> Tensor:
    """[P]: softmax attention onto each key, averaged over heads and queries, in float32."""
    heads, patches, _ = query_HPD.shape
    total_P = query_HPD.new_zeros(patches, dtype=torch.float32)
    for part_HQD in query_HPD.split(max(1, ELEMENTS_AT_ONCE // (heads * patches)), dim=1):
        logits_HQP = part_HQD.float() @ key_HPD.float().transpose(1, 2) * scaling
        total_P += logits_HQP.softmax(-1).sum((0, 1))
    return total_P / (heads * patches)


def _queries_and_keys(
    block: Any, hidden_PW: Tensor, cos_PD: Tensor, sin_PD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys [H, P, D], and the keys before rotation [P, H * D]."""
    patches = len(hidden_PW)
    with torch.no_grad():
        query_PHD, key_PHD, _ = (
            block.qkv(hidden_PW).reshape(patches, 3, block.num_heads, -1).unbind(1)
        )
    rotated = [
        rotate(each_PHD, cos_PD[:, None], sin_PD[:, None]).transpose(0, 1)
        for each_PHD in (query_PHD, key_PHD)
    ]
    return rotated[0], rotated[1], key_PHD.flatten(1)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in its half-split form; `cos` and `sin` broadcast."""
    first, second = states.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (states.float() * cos.float() + turned * sin.float()).to(states.dtype)


def _cell_orders(tower: Any, grid_J3: Tensor) -> tuple[Tensor, ...]:
    """Raster index of each cell in the order in which the tower's blocks see them."""
    merge = tower.spatial_merge_size
    counts = (grid_J3.prod(-1) // merge**2).tolist()
    if getattr(tower, "fullatt_block_indexes", None) is None:
        return tuple(torch.arange(count, device=grid_J3.device) for count in counts)
    order_N, _ = get_vision_window_index(
        grid_J3,
        spatial_merge_size=merge,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    starts = [sum(counts[:j]) for j in range(len(counts))]
    return tuple(
        part.to(grid_J3.device) - start
        for part, start in zip(order_N.split(counts), starts, strict=True)
    )
