"""Count the arithmetic of a Qwen-VL forward pass by part, from the model's configuration.

In go a Hugging Face config and token counts; out come floating-point operations (one multiply
and add = 2) of the vision tower and of the language model's prefill, the bytes of the KV cache,
and the physical ceiling of dropping tokens after the encoder. Only matrix products count
(linears, convolution as a product, attention): norms, activations and softmax are left out, as
in `torch.utils.flop_counter`, which the tests hold these formulas against. Left out too: decode
steps, and mixtures of experts.

Two conventions for causal attention, because kernels differ: `square` counts the whole L x L
product (what a masked kernel does), `triangle` its lower half (what a causal flash kernel does).
The language model's share, and with it the ceiling, is a little lower with `triangle`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Causal = Literal["square", "triangle"]
FULL_LAYERS = 2
"""Layers that read every token before a selector inside the language model drops any (FastV)."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one forward pass, by part."""

    vision: float = 0.0
    selector: float = 0.0
    language: float = 0.0

    @property
    def total(self) -> float:
        return self.vision + self.selector + self.language

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            vision=self.vision + other.vision,
            selector=self.selector + other.selector,
            language=self.language + other.language,
        )

    def scaled(self, factor: float) -> Flops:
        """Every part times `factor` (to turn sums into means)."""
        return Flops(self.vision * factor, self.selector * factor, self.language * factor)

    def as_dict(self) -> dict[str, float]:
        return {
            "vision": self.vision,
            "selector": self.selector,
            "language": self.language,
            "total": self.total,
        }


def _linear(rows: int, inputs: int, outputs: int) -> float:
    return 2.0 * rows * inputs * outputs


def text_config(config: Any) -> Any:
    """The language model's part of a Qwen-VL config (the config itself when it has no parts)."""
    return getattr(config, "text_config", None) or config


def head_dim(config: Any) -> int:
    """Width of one attention head of the language model."""
    text = text_config(config)
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def cell_patches(config: Any) -> int:
    """Patches merged into one visual token (one cell)."""
    return int(config.vision_config.spatial_merge_size) ** 2


def vision_flops(config: Any, *, cells: Sequence[int]) -> float:
    """The vision tower on images of `cells` merged cells each: embedding, blocks, all mergers.

    Attention runs within an image, so its cost is quadratic per image, not per batch.
    """
    vision = config.vision_config
    width, inner, merge = vision.hidden_size, vision.intermediate_size, cell_patches(config)
    patch_values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    levels = len(getattr(vision, "deepstack_visual_indexes", None) or ())
    total = 0.0
    for count in cells:
        patches = count * merge
        total += _linear(patches, patch_values, width)
        block = _linear(patches, width, 4 * width) + 2 * _linear(patches, width, inner)
        attention = 2 * _linear(patches, patches, width)
        total += vision.depth * (block + attention)
        merger = _linear(count, width * merge, width * merge)
        merger += _linear(count, width * merge, vision.out_hidden_size)
        total += (1 + levels) * merger
    return total


def full_layers(config: Any) -> int:
    """`FULL_LAYERS`, or fewer in a model so shallow that no layer would be left after them."""
    return max(1, min(FULL_LAYERS, text_config(config).num_hidden_layers - 1))


def layer_tokens(config: Any, *, tokens: float, late_tokens: float) -> float:
    """Mean tokens per layer when the layers after `full_layers` read `late_tokens`."""
    first, layers = full_layers(config), text_config(config).num_hidden_layers
    return (first * tokens + (layers - first) * late_tokens) / layers


def language_flops(
    config: Any,
    *,
    tokens: Sequence[int],
    late_tokens: Sequence[int] | None = None,
    causal: Causal = "square",
    spoken: int = 1,
) -> float:
    """Prefill of sequences of `tokens` tokens each, and the vocabulary for `spoken` positions of
    each.

    Padding is not counted: a batch is the sum of its rows. `late_tokens`: what the layers after
    the first `full_layers` read, for a selector that drops inside the model.
    """
    text, head = text_config(config), head_dim(config)
    width = text.hidden_size
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    linears = width * (queries + 2 * keys) + queries * width + 3 * width * text.intermediate_size
    share = 1.0 if causal == "square" else 0.5
    total = 0.0
    for length, late in zip(tokens, late_tokens or tokens, strict=True):
        first = text.num_hidden_layers if late == length else full_layers(config)
        for layers, rows in ((first, length), (text.num_hidden_layers - first, late)):
            attention = share * 2 * _linear(rows, rows, queries)
            total += layers * (2.0 * rows * linears + attention)
        total += _linear(spoken, width, text.vocab_size)
    return total


def kv_bytes_per_token(config: Any, *, bytes_per_value: int = 2) -> int:
    """Bytes one token occupies in the KV cache (bfloat16 unless told otherwise)."""
    text = text_config(config)
    per_layer = 2 * text.num_key_value_heads * head_dim(config)
    return text.num_hidden_layers * per_layer * bytes_per_value


def forward_flops(
    config: Any,
    *,
    encoded_cells: Sequence[int],
    tokens: Sequence[int],
    late_tokens: Sequence[int] | None = None,
    selector: float = 0.0,
    causal: Causal = "square",
) -> Flops:
    """One batch: the cells that the vision tower encodes and the tokens that enter layer 0.

    `late_tokens`: see `language_flops`.
    """
    return Flops(
        vision=vision_flops(config, cells=encoded_cells),
        selector=selector,
        language=language_flops(config, tokens=tokens, late_tokens=late_tokens, causal=causal),
    )


def ceiling(
    config: Any, *, cells: Sequence[int], text_tokens: Sequence[int], causal: Causal = "square"
) -> float:
    """Largest prefill speed-up that dropping tokens *after* the encoder can reach.

    The cost with every visual token divided by the cost with none in the language model. One
    image per sequence.
    """
    full = [count + text for count, text in zip(cells, text_tokens, strict=True)]
    vision = vision_flops(config, cells=cells)
    return (vision + language_flops(config, tokens=full, causal=causal)) / (
        vision + language_flops(config, tokens=text_tokens, causal=causal)
    )


def matched_resize_share(
    config: Any,
    *,
    cells: int | Sequence[int],
    text_tokens: int,
    budget_flops: float,
    causal: Causal = "square",
) -> float:
    """Share of an image's (or of several images') cells at which *resizing* costs `budget_flops`.

    Resizing saves in the vision tower as well, so at equal cost it may keep more tokens than a
    selector that works after the encoder. Returns a share in (0, 1].
    """

    images = [cells] if isinstance(cells, int) else cells

    def cost(share: float) -> float:
        kept = [max(1, round(count * share)) for count in images]
        return (
            vision_flops(config, cells=kept)
            + language_flops(config, tokens=[sum(kept) + text_tokens], causal=causal)
        )  # fmt: skip

    if cost(1.0) <= budget_flops:
        return 1.0
    most = max(images)
    low, high = 1.0 / most, 1.0
    for _ in range(max(1, math.ceil(math.log2(most)) + 2)):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget_flops else (low, middle)
    return low


def count_flops(function: Callable[[], Result]) -> tuple[Result, float]:
    """Run `function` and count the matrix products it really does, fused attention included."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    # torch counts the fused attention of GPUs but not the one of CPUs
    fused_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused_on_cpu: attention}) as counter:
        result = function()
    return result, float(counter.get_total_flops())


def published_config(size: Literal["2b", "4b", "8b"]) -> Any:
    """A Qwen3-VL config with the published widths of the 2B, 4B or 8B model (no weights)."""
    from transformers import Qwen3VLConfig

    width, inner, layers, heads = {
        "2b": (2048, 6144, 28, 16),
        "4b": (2560, 9728, 36, 32),
        "8b": (4096, 12288, 36, 32),
    }[size]
    large = size == "8b"
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": not large,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 27 if large else 24,
            "hidden_size": 1152 if large else 1024,
            "intermediate_size": 4304 if large else 4096,
            "num_heads": 16,
            "patch_size": 16,
            "out_hidden_size": width,
            "deepstack_visual_indexes": [8, 16, 24] if large else [5, 11, 17],
        },
        tie_word_embeddings=not large,
    )
