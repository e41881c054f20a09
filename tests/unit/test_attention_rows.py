"""Attention of a few positions equals the model's own weights, and gradients flow through it."""

from __future__ import annotations

import torch

from saccade.config.schema import ModelConfig
from saccade.models.attention_rows import watch_layer
from saccade.models.backbone import load_backbone
from saccade.models.relevance.teacher import eager_attention


def test_watched_rows_are_the_models_own_attention_weights() -> None:
    base = load_backbone(ModelConfig()).model
    ids_RL = torch.randint(10, 400, (3, 12), generator=torch.Generator().manual_seed(0))
    row_W, position_W = torch.tensor([2, 0, 2, 1]), torch.tensor([11, 4, 7, 0])
    visible_WL = torch.arange(12) <= position_W[:, None]
    with eager_attention(base), torch.no_grad(), watch_layer(base, layer=1) as watched:
        out = base.model(input_ids=ids_RL, output_attentions=True, use_cache=False)
        paid_WHL = watched.paid(row_W=row_W, position_W=position_W, visible_WL=visible_WL)
    expected_WHL = out.attentions[1][row_W, :, position_W]
    assert torch.allclose(paid_WHL, expected_WHL, atol=1e-5)


def test_a_gradient_reaches_queries_and_keys_through_watched_rows() -> None:
    base = load_backbone(ModelConfig()).model
    layer = base.model.language_model.layers[1].self_attn
    layer.requires_grad_(True)
    with watch_layer(base, layer=1) as watched:
        base.model(input_ids=torch.arange(20, 30)[None], use_cache=False)
        paid_WHL = watched.paid(
            row_W=torch.tensor([0]), position_W=torch.tensor([9]),
            visible_WL=torch.ones(1, 10, dtype=torch.bool),
        )  # fmt: skip
    paid_WHL[:, :, 3].log().sum().backward()
    for name in ("q_proj", "k_proj", "q_norm", "k_norm"):
        assert getattr(layer, name).weight.grad.abs().sum() > 0, name
