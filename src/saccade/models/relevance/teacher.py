"""Where the frozen language model itself looks: the target of the warm start.

In go the base model and full-length inputs; out comes, per visual token, the attention it gets
from the last prompt token (the one that predicts the answer), averaged over heads and over the
later two thirds of the layers and normalised per image. Needs attention weights, hence the eager
implementation for this one pass. Attention is biased (sinks, recency), so it only warms up; the
loss through the gate decides. Left out: leave-one-out teachers (N + 1 passes).

Shapes: B samples, L tokens, N cells of all images, I images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from saccade.data.chat import IGNORE_INDEX
from saccade.models.relevance.prune import LanguageInputs


@contextmanager
def eager_attention(base: Any) -> Iterator[None]:
    """Let the language model return attention weights for the duration of the block."""
    language_model = base.model.language_model
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)


def last_prompt_position(inputs: LanguageInputs) -> Tensor:
    """[B]: the position before the first supervised token, or the last token without labels."""
    length = inputs.input_ids_BS.shape[1]
    if inputs.labels_BS is None:
        return torch.full((len(inputs.input_ids_BS),), length - 1)
    learned_BL = inputs.labels_BS != IGNORE_INDEX
    first_B = learned_BL.int().argmax(1)
    return torch.where(learned_BL.any(1), first_B - 1, length - 1)


@torch.no_grad()
def question_attention(base: Any, inputs: LanguageInputs, *, image_token: int) -> Tensor:
    """Teacher distribution [N]: sums to 1 over each image's cells."""
    assert inputs.images is not None
    with eager_attention(base):
        out = base.model(**inputs.forward_arguments(), output_attentions=True, use_cache=False)
    layers = out.attentions
    chosen = layers[len(layers) // 3 :] if len(layers) > 1 else layers
    rows = torch.arange(len(inputs.input_ids_BS), device=inputs.input_ids_BS.device)
    asking_B = last_prompt_position(inputs).to(rows.device)
    received_BL = torch.stack([layer[rows, :, asking_B].mean(1) for layer in chosen]).mean(0)
    attention_N = received_BL[inputs.input_ids_BS == image_token].float()
    counts = [len(tokens) for tokens in inputs.images.pooled]
    return torch.cat([part / part.sum().clamp_min(1e-9) for part in attention_N.split(counts)])


def distillation_losses(logits_N: Tensor, teacher_N: Tensor, *, counts: list[int]) -> Tensor:
    """[I]: KL(teacher || softmax(logits)) of each image."""
    losses = []
    for logits, teacher in zip(logits_N.split(counts), teacher_N.split(counts), strict=True):
        log_student = logits.float().log_softmax(0)
        losses.append((teacher * (teacher.clamp_min(1e-9).log() - log_student)).sum())
    return torch.stack(losses)
