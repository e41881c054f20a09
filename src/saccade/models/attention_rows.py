"""Attention that a few positions pay, beside a forward pass that keeps its fused kernel.

In go a base and a decoder layer; during the block its attention's input is caught, and for chosen
positions (rows of the attention matrix) flows out what each head pays to every token, with its
gradient. Asking the model for all weights instead takes the slow kernel and a square of memory.
Left out: cached decoding, windows.

Shapes: R rows of the batch, L tokens, D width, W watched positions, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saccade.models.relevance.attention_scores import rotate


@dataclass
class Watched:
    """What entered one layer's attention; filled by the forward pass inside `watch_layer`."""

    attention: Any
    inputs: dict[str, Any] = field(default_factory=dict)

    def paid(self, *, row_W: Tensor, position_W: Tensor, visible_WL: Tensor) -> Tensor:
        """[W, H, L]: softmax attention of each watched position, in float32.

        `visible_WL` (bool) is what the positions may see: their rows of the model's mask.
        """
        layer, hidden_RLD = self.attention, self.inputs["hidden_states"]
        cos_RLE, sin_RLE = self.inputs["position_embeddings"]
        if len(cos_RLE) != len(hidden_RLD):  # the same positions for all rows
            cos_RLE, sin_RLE = (one.expand(len(hidden_RLD), -1, -1) for one in (cos_RLE, sin_RLE))
        query_WHE = _heads(layer, "q", hidden_RLD[row_W, position_W])
        cos_W1E, sin_W1E = (one[row_W, position_W, None] for one in (cos_RLE, sin_RLE))
        query_WHE = rotate(query_WHE, cos_W1E, sin_W1E)
        rows, which_W = row_W.unique(return_inverse=True)
        key_SLHE = _heads(layer, "k", hidden_RLD[rows])
        key_SLHE = rotate(key_SLHE, cos_RLE[rows, :, None], sin_RLE[rows, :, None])
        groups = query_WHE.shape[1] // key_SLHE.shape[2]
        query_WKGE = query_WHE.unflatten(1, (-1, groups)).float()
        # a product per row of the batch: indexing keys by position would copy them W times
        parts = [
            torch.einsum("wkge,lke->wkgl", query_WKGE[which_W == number], key_LHE.float())
            for number, key_LHE in enumerate(key_SLHE)
        ]
        back_W = torch.cat([(which_W == n).nonzero()[:, 0] for n in range(len(rows))]).argsort()
        scores_WHL = torch.cat(parts)[back_W].flatten(1, 2) * layer.scaling
        return scores_WHL.masked_fill(~visible_WL[:, None], float("-inf")).softmax(-1)


@contextmanager
def watch_layer(base: Any, *, layer: int) -> Iterator[Watched]:
    """Catch what enters the attention of decoder layer `layer` of a Qwen-VL during the block."""
    attention = base.model.language_model.layers[layer].self_attn
    watched = Watched(attention)

    def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watched.inputs.update(kwargs)
        if args:
            watched.inputs["hidden_states"] = args[0]

    hook = attention.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        yield watched
    finally:
        hook.remove()


def _heads(layer: Any, which: str, states: Tensor) -> Tensor:
    """Project and split into heads; Qwen3 also normalises each head."""
    projected = getattr(layer, f"{which}_proj")(states).unflatten(-1, (-1, layer.head_dim))
    norm = getattr(layer, f"{which}_norm", None)
    return projected if norm is None else norm(projected)
