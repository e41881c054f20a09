"""FLOP formulas: against torch's own counter on a real (tiny) Qwen3-VL, and against the
published dimensions of the 2B, 4B and 8B models.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saccade.models import flops

# side in pixels, cells; ViT and LM in TFLOP; ceiling of dropping every visual token (keep 0 %)
TABLE = [
    ("2b", 196, 0.58, 0.74, 1.74),
    ("2b", 1024, 4.3, 3.2, 1.67),
    ("2b", 4096, 37.0, 13.7, 1.36),
    ("4b", 196, 0.58, 1.9, 2.38),
    ("4b", 1024, 4.4, 8.3, 2.61),
    ("4b", 4096, 37.0, 35.0, 1.92),
    ("8b", 196, 0.79, 3.6, 2.63),
    ("8b", 1024, 5.8, 15.5, 3.18),
    ("8b", 4096, 48.0, 63.0, 2.26),
]


def tiny_config() -> Any:
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(
        text_config={
            "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4,
                "mrope_section": [6, 5, 5], "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 3, "hidden_size": 48, "intermediate_size": 80, "num_heads": 4,
            "patch_size": 8, "out_hidden_size": 64, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=290, video_token_id=291,
        vision_start_token_id=292, vision_end_token_id=293, tie_word_embeddings=True,
    )  # fmt: skip


@pytest.mark.parametrize(("size", "cells", "vision", "language", "limit"), TABLE)
def test_published_sizes_cost_what_the_reference_table_says(
    size: Any, cells: int, vision: float, language: float, limit: float
) -> None:
    config = flops.published_config(size)
    assert flops.vision_flops(config, cells=[cells]) / 1e12 == pytest.approx(vision, rel=0.03)
    lm = flops.language_flops(config, tokens=[cells + 64], causal="triangle")
    assert lm / 1e12 == pytest.approx(language, rel=0.03)
    reached = flops.ceiling(config, cells=[cells], text_tokens=[64], causal="triangle")
    assert reached == pytest.approx(limit, rel=0.03)


def test_kv_bytes_of_the_published_sizes() -> None:
    found = {s: flops.kv_bytes_per_token(flops.published_config(s)) for s in ("2b", "4b", "8b")}
    assert found == {"2b": 112 * 1024, "4b": 144 * 1024, "8b": 144 * 1024}


def test_formulas_equal_torchs_counter_on_a_real_model() -> None:
    from transformers import Qwen3VLForConditionalGeneration

    config = tiny_config()
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config).eval()
    grid = torch.tensor([[1, 6, 8], [1, 4, 4]])
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 8 * 8)
    cells = [12, 4]
    with torch.no_grad():
        features, counted = flops.count_flops(lambda: model.model.visual(pixels, grid_thw=grid))
    assert features.pooler_output.shape[0] == sum(cells)
    assert flops.vision_flops(config, cells=cells) == pytest.approx(counted, rel=1e-6)

    ids = torch.full((2, 30), 5)
    with torch.no_grad():
        _, counted = flops.count_flops(lambda: model(input_ids=ids, logits_to_keep=1))
    assert flops.language_flops(config, tokens=[30, 30]) == pytest.approx(counted, rel=1e-6)


def test_parts_add_up_and_scale() -> None:
    config = tiny_config()
    one = flops.forward_flops(config, encoded_cells=[12], tokens=[40], selector=7.0)
    assert one.total == one.vision + one.selector + one.language
    assert (one + one).scaled(0.5) == one
    assert one.as_dict()["total"] == one.total


def test_a_config_without_deepstack_costs_one_merger_only() -> None:
    config = tiny_config()
    with_levels = flops.vision_flops(config, cells=[9])
    config.vision_config.deepstack_visual_indexes = []
    merger = 2.0 * 9 * (192 * 192 + 192 * 64)
    assert with_levels - flops.vision_flops(config, cells=[9]) == pytest.approx(2 * merger)


def test_resizing_at_equal_cost_keeps_more_tokens_than_dropping_after_the_encoder() -> None:
    config = flops.published_config("2b")
    dropped = flops.forward_flops(config, encoded_cells=[1024], tokens=[256 + 64])
    share = flops.matched_resize_share(
        config, cells=1024, text_tokens=64, budget_flops=dropped.total
    )
    kept = round(1024 * share)
    resized = flops.forward_flops(config, encoded_cells=[kept], tokens=[kept + 64])
    assert 0.25 < share < 1.0
    assert resized.total == pytest.approx(dropped.total, rel=0.01)
    assert resized.total <= dropped.total


def test_a_budget_above_the_full_cost_means_no_resizing() -> None:
    config = tiny_config()
    assert flops.matched_resize_share(config, cells=64, text_tokens=8, budget_flops=1e15) == 1.0
