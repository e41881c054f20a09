"""Choosing before the tower is exact too: all kept is the whole, some kept is a masked tower.

`pixels` and `glance` encode only chosen cells; each is held against its own reference, batched,
with several images, padding and a cache.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.config.errors import InputError
from saccade.models.relevance.glance import preview_positions, uncovered
from saccade.models.relevance.model import RelevanceModel
from saccade.models.relevance.reduce import ImageSelection
from saccade.models.relevance.vision import encode_cells
from tests.tiny_models import (
    mixed_samples,
    model_inputs,
    older_backbone,
    random_backbone,
    relevance_model,
    renderer,
    sample,
    scene_samples,
    stepwise,
    tensions_of,
)

EARLY = ("pixels", "glance")


def early_model(placement: str, **settings: object) -> RelevanceModel:
    return relevance_model(None, placement=placement, preview_scale=0.25, **settings)


@pytest.mark.parametrize("placement", EARLY)
def test_keeping_everything_gives_the_unmodified_models_logits_bit_for_bit(placement: str) -> None:
    batch = renderer().batch(mixed_samples(), with_answer=True)
    with torch.no_grad():
        ours = early_model(placement, keep=1.0)(**{k: batch[k] for k in batch if k != "sample_ids"})
        stock = random_backbone().model(**model_inputs(batch)).logits
    assert torch.equal(ours.logits, stock)


@pytest.mark.parametrize("placement", EARLY)
def test_an_image_that_keeps_everything_needs_no_preview_whoever_is_beside_it(
    placement: str,
) -> None:
    small, large = sample(0, (32, 32)), sample(1, (160, 160))
    model = early_model(placement, keep=9)
    alone = model.reduce(renderer().batch([small], with_answer=False))
    mixed = model.reduce(renderer().batch([large, small], with_answer=False))
    assert alone.images[0].kept == mixed.images[1].kept == 4
    context = len(places_left(mixed.images[0], small=(2, 2))) if placement == "glance" else 0
    assert mixed.images[0].kept == 9 + context


def test_chosen_cells_are_encoded_as_a_tower_would_that_masks_the_rest() -> None:
    batch = renderer().batch(mixed_samples(), with_answer=False)
    base = random_backbone().model
    pixels, grid = batch["pixel_values"], batch["image_grid_thw"]
    cells = (grid.prod(-1) // 4).tolist()
    generator = torch.Generator().manual_seed(0)
    keep_C = torch.rand(sum(cells), generator=generator) < 0.4
    ours = encode_cells(base, pixels, grid, keep_C)
    for image, (rows_ND, keep) in enumerate(
        zip(pixels.split(grid.prod(-1).tolist()), keep_C.split(cells), strict=True)
    ):
        pooled, levels = masked_tower(base, rows_ND, grid[image : image + 1], keep)
        torch.testing.assert_close(ours.pooled[image], pooled[keep], atol=1e-5, rtol=1e-5)
        for level, reference in zip(ours.deepstack, levels, strict=True):
            torch.testing.assert_close(level[image], reference[keep], atol=1e-5, rtol=1e-5)


def masked_tower(base, rows_ND, grid_13, keep):
    """The whole tower, every block's attention forbidden to look at dropped patches."""
    patches = keep.repeat_interleave(4)
    allowed = patches[None, :] | torch.eye(len(patches), dtype=torch.bool)
    tower = base.model.visual
    handles = []

    def attend(module, arguments, keywords, output):
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        q, k, v = (
            module.qkv(hidden).reshape(len(hidden), 3, module.num_heads, -1).permute(1, 2, 0, 3)
        )
        cos, sin = keywords["position_embeddings"]
        turn = lambda x: torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1)  # noqa: E731
        q, k = q * cos + turn(q) * sin, k * cos + turn(k) * sin
        weight = (q @ k.transpose(-1, -2) * module.scaling).masked_fill(~allowed, -torch.inf)
        mixed = (weight.softmax(-1) @ v).transpose(0, 1).reshape(len(hidden), -1)
        return module.proj(mixed)

    for block in tower.blocks:
        handles.append(block.attn.register_forward_hook(attend, with_kwargs=True))
    try:
        with torch.no_grad():
            out = tower(rows_ND, grid_thw=grid_13, return_dict=True)
    finally:
        for handle in handles:
            handle.remove()
    return out.pooler_output, out.deepstack_features


@pytest.mark.parametrize("placement", EARLY)
def test_a_cached_answer_equals_recomputing_every_step(placement: str) -> None:
    model = early_model(placement)
    batch = renderer().batch(mixed_samples(), with_answer=False)
    expected = stepwise(model, model.reduce(batch, keep=0.3).inputs, steps=6)
    out = model.generate(
        **model_inputs(batch), keep=0.3, max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    assert torch.equal(out[:, batch["input_ids"].shape[1] :], expected)


@pytest.mark.parametrize("placement", EARLY)
def test_a_batch_gives_what_its_samples_give_alone(placement: str) -> None:
    model = early_model(placement)
    together = model.reduce(renderer().batch(mixed_samples(), with_answer=False), keep=0.3)
    with torch.no_grad():
        logits = model.base(**together.inputs.forward_arguments()).logits[:, -1]
    start = 0
    for row, one in enumerate(mixed_samples()):
        alone = model.reduce(renderer().batch([one], with_answer=False), keep=0.3)
        with torch.no_grad():
            own = model.base(**alone.inputs.forward_arguments()).logits[0, -1]
        torch.testing.assert_close(logits[row], own, atol=2e-4, rtol=1e-3)
        for image in alone.images:
            assert image.keep_HW is not None
            other = together.images[start].keep_HW
            assert other is not None and torch.equal(image.keep_HW, other)
            start += 1


def test_only_the_chosen_cells_and_the_preview_enter_the_towers_blocks() -> None:
    model = early_model("glance")
    seen: list[int] = []
    handle = model.base.model.visual.blocks[0].register_forward_pre_hook(
        lambda _, arguments: seen.append(len(arguments[0]))
    )
    try:
        batch = renderer().batch([sample(0, (256, 256))], with_answer=False)
        reduced = model.reduce(batch, keep=0.1)
    finally:
        handle.remove()
    assert seen == [16 * 4, 26 * 4]
    image = reduced.images[0]
    context = len(places_left(image, small=(4, 4)))
    assert image.encoded == (16, 26) and image.kept == context + 26
    assert reduced.inputs.images is not None
    assert len(reduced.inputs.images.pooled[0]) == context + 26


def places_left(image: ImageSelection, *, small: tuple[int, int]) -> list[int]:
    """Preview cells that share no area with a chosen cell, by going through all pairs."""
    assert image.keep_HW is not None
    (h, w), chosen = image.grid, image.keep_HW.nonzero().tolist()
    return [
        y * small[1] + x
        for y in range(small[0])
        for x in range(small[1])
        if not any(
            r * small[0] < (y + 1) * h and y * h < (r + 1) * small[0]
            and c * small[1] < (x + 1) * w and x * w < (c + 1) * small[1]
            for r, c in chosen
        )
    ]  # fmt: skip


def test_the_preview_stays_where_no_cell_was_chosen_also_when_sizes_do_not_divide() -> None:
    model = early_model("glance")
    reduced = model.reduce(renderer().batch(mixed_samples(), with_answer=False), keep=0.1)
    features = model.encode(renderer().batch(mixed_samples(), with_answer=False))
    assert features.preview is not None
    rest = uncovered(features.preview, [i.keep_HW for i in reduced.images if i.keep_HW is not None])
    for open_M, image, small in zip(rest, reduced.images, features.preview.sizes, strict=True):
        assert open_M.nonzero()[:, 0].tolist() == places_left(image, small=small)


@pytest.mark.parametrize("covered", [True, False])
def test_training_reads_the_preview_only_where_no_cell_was_chosen(covered: bool) -> None:
    model = early_model("glance").train()
    batch = renderer().batch([sample(0, (256, 256))], with_answer=True)
    features = model.encode(batch)
    assert features.preview is not None
    gated = model.gate(features, keep=0.05)
    rest = uncovered(features.preview, features.grid.split(gated.hard_N))
    noisy = features.preview.tokens.map(
        lambda i, rows: rows + 10.0 * (rest[i] != covered)[:, None].to(rows.dtype)
    )
    changed = replace(features, preview=replace(features.preview, tokens=noisy))
    with torch.no_grad():
        logits, other = (
            model.base(**model.gate(one, keep=0.05).arguments).logits[0, -1]
            for one in (features, changed)
        )
    assert rest[0].any() and not rest[0].all()
    assert torch.allclose(logits, other, atol=1e-4) == covered


def test_what_is_measured_in_a_glance_is_the_preview_and_not_the_edges_beside_it() -> None:
    model = early_model("glance")
    features = model.encode(renderer().batch(scene_samples(2), with_answer=False))
    measured = model.base.config.text_config.hidden_size
    preview_ND, beside_ND = features.cells_ND[:, :measured], features.cells_ND[:, measured:]
    # the same values in another order: the norm over all of a cell's values stays what it was
    mixed = replace(features, cells_ND=torch.cat([preview_ND, beside_ND.flip(-1)], dim=-1))
    with torch.no_grad():
        ours, other = model.score(features).maps, model.score(mixed).maps
    for name in ("information", "salience"):
        torch.testing.assert_close(ours[name], other[name])
    assert not torch.allclose(ours["participation"], other["participation"], atol=1e-3)


def test_preview_tokens_stand_at_the_centres_of_what_they_show() -> None:
    rows, columns = torch.meshgrid(torch.arange(8) + 5, torch.arange(4) + 5, indexing="ij")
    full = torch.stack([torch.full_like(rows, 5), rows, columns]).flatten(1)
    ours = preview_positions(full, size=(8, 4), small=(2, 1))
    assert ours.tolist() == [[5.0, 5.0], [6.5, 10.5], [6.5, 6.5]]


def test_the_coarse_tokens_come_first_and_text_stays_where_it_was() -> None:
    model = early_model("glance")
    batch = renderer().batch([sample(0, (128, 128))], with_answer=False)
    inputs = model.reduce(batch, keep=0.2).inputs
    assert inputs.source_BS is not None
    image = (inputs.input_ids_BS == model.markers.image)[0]
    places = inputs.source_BS[0][image]
    coarse = int((places == -1).sum())
    assert (places[:coarse] == -1).all() and (places[coarse:].diff() > 0).all()
    text = inputs.source_BS[0][~image]
    assert torch.equal(batch["input_ids"][0][text], inputs.input_ids_BS[0][~image])
    whole = model.encode(batch).inputs.positions_3BS
    assert torch.equal(inputs.positions_3BS[:, 0, ~image], whole[:, 0, text].float())


@pytest.mark.parametrize("placement", EARLY)
def test_every_trainable_tensor_gets_a_gradient_and_scores_ignore_batch_mates(
    placement: str,
) -> None:
    model = early_model(placement).train()
    batch = renderer().batch(scene_samples(4), with_answer=True)
    features = model.encode(batch)
    loss, _ = model.answer_loss(features, keep=0.2, denominator=4.0)
    (loss.total + model.imitation_loss(features, denominator=4.0)).backward()
    silent = [
        name for name, p in model.selector.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.abs().sum() > 0
    ]  # fmt: skip
    assert silent == []
    with torch.no_grad():
        parts = model.score(features).logits_N.split(features.grid.counts)
        alone = model.encode(renderer().batch(scene_samples(4)[2:3], with_answer=True))
        torch.testing.assert_close(parts[2], model.score(alone).logits_N, atol=1e-4, rtol=1e-4)


def test_the_gate_reads_the_preview_with_labels_where_they_belong() -> None:
    model = early_model("glance").train()
    batch = renderer().batch(scene_samples(3), with_answer=True)
    gated = model.gate(model.encode(batch), keep=0.2)
    labels = gated.inputs.labels_BS
    assert labels is not None
    for row in range(3):
        own = batch["labels"][row]
        assert torch.equal(labels[row][labels[row] != -100], own[own != -100])
    out = model(**{k: v for k, v in batch.items() if k != "sample_ids"}, keep=0.2)
    assert out.logits.shape[:2] == batch["input_ids"].shape


def test_families_that_cannot_encode_a_part_say_so() -> None:
    model = relevance_model(older_backbone(), placement="pixels")
    with pytest.raises(InputError, match=r"(?s)cannot encode a part.*placement=features"):
        model.reduce(renderer().batch([sample(0, (64, 64))], with_answer=False), keep=0.3)


def test_all_coarse_equals_pooling_and_no_coarse_equals_dropping_bit_for_bit() -> None:
    plain = relevance_model()
    for keep, coarse, arm in ((6, 1.0, "pool"), (6, 0.0, "trained")):
        detailed = relevance_model(coarse=coarse)
        samples = [sample(0, (128, 192))]
        batch = renderer().batch(samples, with_answer=False)
        ours, reference = detailed.reduce(batch, keep=keep), plain.reduce(batch, arm=arm, keep=keep)
        a, b = ours.inputs, reference.inputs
        assert a.images is not None and b.images is not None
        assert torch.equal(a.images.pooled[0], b.images.pooled[0])
        assert torch.equal(a.images.deepstack[1][0], b.images.deepstack[1][0])
        with torch.no_grad():
            logits = [detailed.base(**one.forward_arguments()).logits for one in (a, b)]
        assert torch.equal(*logits)


def test_the_compress_tension_splits_the_budget_when_asked() -> None:
    model = relevance_model(coarse="tension")
    batch = renderer().batch([sample(0, (256, 256))], with_answer=False)
    with torch.no_grad():
        tensions_of(model).bias[0] = 0.0  # about one half
    reduced = model.reduce(batch, keep=40)
    share = reduced.tensions[0]["compress"]
    (image,) = reduced.images
    assert image.keep_HW is not None and image.kept <= 40
    assert int(image.keep_HW.sum()) == 40 - round(40 * share)
    assert reduced.inputs.images is not None
    assert len(reduced.inputs.images.pooled[0]) == image.kept


def test_an_adaptive_budget_stays_within_its_reach_and_follows_the_tension() -> None:
    model = relevance_model(adaptive=2.0)
    batch = renderer().batch([sample(0, (256, 256)), sample(1, (256, 128))], with_answer=False)
    sizes = {}
    for bias in (-6.0, -2.1972, 6.0):
        with torch.no_grad():
            tensions_of(model).bias[0] = bias
            tensions_of(model).weight.zero_()
        sizes[bias] = [image.kept for image in model.reduce(batch, keep=40).images]
    assert sizes[-2.1972] == [40, 40], "neutral leaves the budget alone"
    assert sizes[6.0] == [20, 20] and sizes[-6.0] == [80, 80]


def test_the_price_of_tokens_reaches_the_tension_through_the_budget() -> None:
    batch = renderer().batch(scene_samples(3), with_answer=True)
    gradients = []
    for price in (0.0, 5.0):
        model = relevance_model(adaptive=2.0, token_price=price).train()
        loss, gated = model.answer_loss(model.encode(batch), keep=0.2, denominator=3.0)
        loss.total.backward()
        gradient = tensions_of(model).bias.grad
        assert gradient is not None
        gradients.append(gradient[0].clone())
        assert gated.kept_I.requires_grad
    assert gradients[0] != gradients[1] and gradients[1] < gradients[0], "a price asks for less"


@pytest.mark.parametrize("placement", ["features", *EARLY])
def test_the_set_step_keeps_the_best_cell_and_as_many_but_not_the_same(placement: str) -> None:
    batch = renderer().batch([sample(0, (256, 256))], with_answer=False)
    plain, stepped = (
        early_model(placement, set_step=strength).reduce(batch, keep=30).images[0].keep_HW
        for strength in (None, 0.5)
    )
    alone = early_model(placement, set_step=1.0).reduce(batch, keep=30).images[0].keep_HW
    best = early_model(placement).reduce(batch, keep=1).images[0].keep_HW
    assert plain is not None and stepped is not None and alone is not None and best is not None
    assert plain.sum() == stepped.sum() == 30 and not torch.equal(plain, stepped)
    assert torch.equal(plain, alone), "nothing but relevance is the plain order"
    assert bool((stepped & best).any())
