"""Pruning is exact: keeping all is the unmodified model, dropping is masking, cached is uncached.

Each property is checked against its own reference, and mutants that break it in the ways others
have (renumbered positions, a lost DeepStack level, the unpruned mask) must fail the same check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from saccade.models.backbone import Backbone
from saccade.models.relevance.allocate import top_k
from saccade.models.relevance.gates import gated_attention_mask
from saccade.models.relevance.model import RelevanceModel
from saccade.models.relevance.prune import ImageTokens, LanguageInputs, full_length
from tests.tiny_models import (
    mixed_samples,
    model_inputs,
    older_backbone,
    random_backbone,
    relevance_model,
    renderer,
    sample,
    stepwise,
)

TOLERANCE = 1e-4


def stock_logits(batch: dict, backbone: Backbone | None = None) -> torch.Tensor:
    with torch.no_grad():
        return (backbone or random_backbone()).model(**model_inputs(batch)).logits


@pytest.mark.parametrize("backbone", [random_backbone, older_backbone])
def test_keeping_everything_gives_the_unmodified_models_logits_bit_for_bit(
    backbone: Callable[[], Backbone],
) -> None:
    batch = renderer().batch(mixed_samples(), with_answer=True)
    assert (batch["attention_mask"] == 0).any(), "the batch should be padded"
    assert len(set(map(tuple, batch["image_grid_thw"].tolist()))) == 4
    with torch.no_grad():
        model = relevance_model(backbone(), keep=1.0)
        ours = model(**{k: v for k, v in batch.items() if k != "sample_ids"})
    assert torch.equal(ours.logits, stock_logits(batch, backbone()))


def test_text_only_samples_pass_through_bit_for_bit() -> None:
    texts = [sample(0, question="what is this?"), sample(1, question="and what about that one?")]
    batch = renderer().batch(texts, with_answer=False)
    assert "pixel_values" not in batch
    with torch.no_grad():
        ours = relevance_model(keep=0.2)(**model_inputs(batch)).logits
    assert torch.equal(ours, stock_logits(batch))


def masked_reference(model: RelevanceModel, batch: dict, keep: float) -> torch.Tensor:
    """Full-length logits with the dropped visual keys masked in every layer, by hand."""
    features = model.encode(batch)
    inputs = features.inputs
    kept = model.budgets(features.grid, keep)
    scored = model.score(features, kept=kept)
    keep_N = top_k(scored.logits_N, cells=features.grid.counts, kept=kept)
    visible_BL = inputs.attention_mask_BS.bool().clone()
    visible_BL[inputs.input_ids_BS == model.markers.image] = keep_N
    length = visible_BL.shape[1]
    allowed = visible_BL[:, None, :] & torch.ones(length, length, dtype=torch.bool).tril()
    allowed = allowed | torch.eye(length, dtype=torch.bool)
    with torch.no_grad():
        arguments = inputs.forward_arguments() | {"attention_mask": allowed[:, None]}
        return model.base(**arguments).logits


Mutation = Callable[[LanguageInputs], LanguageInputs]


def largest_difference(
    mutate: Mutation, keep: float = 0.3, backbone: Backbone | None = None
) -> float:
    """Of pruned logits against the masked reference, at every position that is left."""
    model = relevance_model(backbone)
    batch = renderer().batch(mixed_samples(), with_answer=True)
    reduced = model.reduce(batch, keep=keep)
    inputs = mutate(reduced.inputs)
    with torch.no_grad():
        logits = model.base(**inputs.forward_arguments()).logits
    reference = masked_reference(model, batch, keep)
    source = reduced.inputs.source_BS
    assert source is not None
    spread = full_length(logits, source, length=reference.shape[1])
    rows, columns = (source >= 0).nonzero(as_tuple=True)
    left = source[rows, columns]
    return float((spread[rows, left] - reference[rows, left]).abs().max())


def lose_a_level(inputs: LanguageInputs) -> LanguageInputs:
    assert inputs.images is not None
    return replace(inputs, images=replace(inputs.images, deepstack=inputs.images.deepstack[:1]))


def swap_level_for_sample(inputs: LanguageInputs) -> LanguageInputs:
    """The fault of indexing DeepStack by sample: level 0 everywhere."""
    images = inputs.images
    assert images is not None
    first = images.deepstack[0]
    return replace(
        inputs, images=ImageTokens(images.pooled, tuple(first for _ in images.deepstack))
    )


def renumber(inputs: LanguageInputs) -> LanguageInputs:
    text = (inputs.attention_mask_BS.cumsum(1) - 1).clamp_min(0)
    return replace(inputs, positions_3BS=text[None].expand(3, -1, -1))


def forget_the_padding(inputs: LanguageInputs) -> LanguageInputs:
    return replace(inputs, attention_mask_BS=torch.ones_like(inputs.attention_mask_BS))


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.9])
def test_dropping_tokens_equals_masking_their_keys(keep: float) -> None:
    assert largest_difference(lambda inputs: inputs, keep) < TOLERANCE


def test_dropping_equals_masking_in_a_family_without_deepstack() -> None:
    assert largest_difference(lambda inputs: inputs, 0.3, older_backbone()) < TOLERANCE
    assert largest_difference(renumber, 0.3, older_backbone()) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "mutant", [lose_a_level, swap_level_for_sample, renumber, forget_the_padding]
)
def test_a_mutant_is_caught_by_the_masking_reference(mutant: Mutation) -> None:
    assert largest_difference(mutant) > 100 * TOLERANCE


def test_the_training_gate_computes_what_pruned_inference_computes() -> None:
    model = relevance_model()
    batch = renderer().batch(mixed_samples(), with_answer=True)
    features = model.encode(batch)
    with torch.no_grad():
        gated = model.base(**model.gate(features, keep=0.3).arguments).logits
    reference = masked_reference(model, batch, 0.3)
    answers = batch["labels"] != -100
    assert float((gated[answers] - reference[answers]).abs().max()) < 1e-3


@pytest.mark.parametrize("keep", [0.2, 1.0])
def test_generate_equals_step_by_step_recomputation_without_a_cache(keep: float) -> None:
    model = relevance_model()
    batch = renderer().batch(mixed_samples(), with_answer=False)
    reduced = model.reduce(batch, keep=keep)
    expected = stepwise(model, reduced.inputs, steps=6)
    out = model.generate(
        **model_inputs(batch), keep=keep, max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    length = batch["input_ids"].shape[1]
    assert torch.equal(out[:, :length], batch["input_ids"])
    assert torch.equal(out[:, length:], expected)


def test_generating_with_the_unpruned_mask_is_caught() -> None:
    model = relevance_model()
    batch = renderer().batch(mixed_samples(), with_answer=False)
    reduced = model.reduce(batch, keep=0.2)
    expected = stepwise(model, reduced.inputs, steps=6)
    arguments = reduced.inputs.generation_arguments()
    short = reduced.inputs.input_ids_BS.shape[1]
    arguments["attention_mask"] = torch.ones_like(batch["attention_mask"])[:, :short]
    wrong = model.base.generate(**arguments, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert not torch.equal(wrong[:, short:], expected)


def test_dropped_positions_of_full_length_logits_are_zero_and_the_others_in_place() -> None:
    model = relevance_model()
    batch = renderer().batch(mixed_samples(), with_answer=True)
    inputs = {k: v for k, v in batch.items() if k != "sample_ids"}
    with torch.no_grad():
        full = model(**inputs, keep=0.3, full_length_logits=True).logits
    assert full.shape[:2] == batch["input_ids"].shape
    reference = masked_reference(model, batch, 0.3)
    answers = batch["labels"] != -100
    assert float((full[answers] - reference[answers]).abs().max()) < TOLERANCE
    dropped = (full == 0).all(-1) & (batch["attention_mask"] == 1)
    assert (batch["input_ids"][dropped] == model.markers.image).all() and dropped.any()


def test_the_gate_mask_hides_padding_and_the_future_and_spares_a_tokens_own_key() -> None:
    gate = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    mask = gated_attention_mask(torch.tensor([[0, 1, 1, 1]]), gate, dtype=torch.float32)[0, 0]
    lowest = torch.finfo(torch.float32).min
    assert mask[3, 0] == lowest and mask[1, 2] == lowest
    assert mask[2, 2] == 0 and mask[3, 2] < -10 and mask[3, 1].abs() < 1e-5
