"""Peers against recomputations by hand: greedy sets by brute force, attention by its definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.config.errors import InputError
from saccade.models import flops
from saccade.models.backbone import Backbone
from saccade.models.relevance.allocate import top_k
from saccade.models.relevance.attention_scores import (
    catch_block_input,
    mean_received,
    observed_block,
    received_attention,
)
from saccade.models.relevance.baselines import ARMS, find_arm
from saccade.models.relevance.diversity import (
    cosines,
    dpp_order,
    max_min_order,
    mmr_order,
    scope_order,
    set_step,
)
from saccade.models.relevance.model import RelevanceModel
from saccade.models.relevance.peers import plan_merge
from saccade.models.relevance.reduce import Reduced
from tests.tiny_models import (
    mixed_samples,
    older_backbone,
    random_backbone,
    relevance_model,
    renderer,
    sample,
)

PEERS = (
    "vision_attention", "vision_attention_drop", "early_attention", "max_min_diversity", "dpp",
    "scope", "vision_attention+mmr", "early_attention+mmr", "trained+mmr", "saliency+mmr",
)  # fmt: skip
FAMILIES = [random_backbone, older_backbone]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def greedy(count: int, kept: int, value: Callable[[list[int], int], float]) -> list[int]:
    """Add the cell of the largest value until `kept` are chosen; ties to the lower index."""
    chosen: list[int] = []
    while len(chosen) < kept:
        left = [cell for cell in range(count) if cell not in chosen]
        chosen.append(max(left, key=lambda cell: (value(chosen, cell), -cell)))
    return chosen


# -- sets ----------------------------------------------------------------------------------------


def test_max_min_diversity_picks_what_brute_force_picks() -> None:
    cosine = cosines(drawn(9, 4))
    distance = 1 - cosine

    def value(chosen: list[int], cell: int) -> float:
        others = chosen or [other for other in range(9) if other != cell]
        return min(float(distance[cell, other]) for other in others)

    assert max_min_order(cosine, kept=6) == greedy(9, 6, value)


def test_the_determinantal_choice_maximises_the_log_determinant_step_by_step() -> None:
    cosine, relevance = cosines(drawn(8, 12, seed=1)), drawn(8, seed=4).sigmoid()
    kernel = relevance[:, None] * cosine * relevance[None, :]

    def value(chosen: list[int], cell: int) -> float:
        index = torch.tensor([*chosen, cell])
        return float(torch.logdet(kernel[index][:, index].double()))

    assert dpp_order(cosine, relevance, kept=5) == greedy(8, 5, value)


def test_beyond_the_rank_of_the_features_the_determinantal_choice_follows_relevance() -> None:
    features = F.normalize(drawn(10, 3, seed=2), dim=-1)
    relevance = torch.linspace(0.1, 1, 10)
    order = dpp_order(cosines(features), relevance, kept=7)
    assert len(set(order)) == 7
    rest = [cell for cell in range(9, -1, -1) if cell not in order[:3]]
    assert order[3:] == rest[:4]


def test_saliency_times_coverage_picks_what_brute_force_picks() -> None:
    cosine, score = cosines(drawn(9, 4, seed=3)), drawn(9, seed=5).sigmoid()

    def value(chosen: list[int], cell: int) -> float:
        gain = 0.0
        for other in range(9):
            covered = max([0.0, *(float(cosine[other, one]) for one in chosen)])
            gain += max(0.0, float(cosine[other, cell]) - covered)
        return float(score[cell]) * gain

    assert scope_order(cosine, score, kept=5) == greedy(9, 5, value)


def test_maximal_marginal_relevance_picks_what_brute_force_picks() -> None:
    cosine, score = cosines(drawn(9, 4, seed=4)), drawn(9, seed=5)
    stretched = (score - score.min()) / (score.max() - score.min())

    def value(chosen: list[int], cell: int) -> float:
        alike = max((float(cosine[cell, one]) for one in chosen), default=0.0)
        return 0.5 * float(stretched[cell]) - 0.5 * alike

    assert mmr_order(cosine, score, kept=6) == greedy(9, 6, value)
    best = score.argsort(descending=True)[:6].tolist()
    assert mmr_order(cosine, score, kept=6, relevance=1.0) == best


def test_a_set_step_works_per_image_and_breaks_ties_by_the_lower_index() -> None:
    features, scores = drawn(11, 4, seed=6), drawn(11, seed=7)
    both = set_step(scores, features, cells=[5, 6], kept=[2, 3])
    alone = set_step(scores[5:], features[5:], cells=[6], kept=[3])
    assert torch.equal(both[5:], alone)
    same = set_step(torch.zeros(4), torch.ones(4, 2), cells=[4], kept=[2])
    assert top_k(same, cells=[4], kept=[2]).tolist() == [True, True, False, False]


def test_only_rankings_take_a_set_step() -> None:
    assert find_arm("trained+mmr").plain == "trained" and find_arm("trained+mmr").set_step
    assert not find_arm("trained").set_step
    for name in ("full+mmr", "resize+mmr", "dpp+mmr"):
        with pytest.raises(InputError, match="no ranking"):
            find_arm(name)
    with pytest.raises(InputError, match="unknown selector"):
        find_arm("magic+mmr")


# -- attention inside the vision tower -----------------------------------------------------------


def tower_by_hand(
    backbone: Backbone, batch: dict[str, Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per image: weights [H, P, P] by definition, and what they give and what the tower gave."""
    tower = backbone.model.model.visual
    block = tower.blocks[observed_block(tower)].attn
    seen: dict[str, Any] = {}
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(kwargs, hidden=args[0]), with_kwargs=True
        ),
        block.qkv.register_forward_hook(lambda _, __, out: seen.update(qkv=out)),
        block.register_forward_hook(lambda _, __, out: seen.update(out=out)),
    ]
    with torch.no_grad():
        backbone.model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])
    for hook in hooks:
        hook.remove()
    (cos, sin), ends = seen["position_embeddings"], seen["cu_seqlens"].tolist()
    for start, end in itertools.pairwise(ends):
        query, key, value = (
            seen["qkv"][start:end].unflatten(1, (3, block.num_heads, -1)).permute(1, 2, 0, 3)
        )
        turn = [part[start:end] for part in (cos, sin)]
        query, key = (one * turn[0] + _turned(one) * turn[1] for one in (query, key))
        weights = (query @ key.transpose(1, 2) * block.head_dim**-0.5).softmax(-1)
        given = block.proj((weights @ value).transpose(0, 1).flatten(1))
        yield weights, given, seen["out"][start:end]


def _turned(states: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    return torch.cat((-states[..., half:], states[..., :half]), dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_received_is_that_of_the_tower_within_each_image(
    family: Callable[[], Backbone],
) -> None:
    batch = renderer().batch(mixed_samples(), with_answer=False)
    caught = catch_block_input(family().model, batch["pixel_values"], batch["image_grid_thw"])
    found = received_attention(caught, merge=2).attention_N
    with torch.no_grad():
        images = list(tower_by_hand(family(), batch))
    assert len(images) == 4
    expected = []
    for (weights, given, out), order in zip(images, caught.cell_order, strict=True):
        # these are the weights: they give the block's own output
        assert float((given - out).abs().max()) < 1e-5
        received = weights.mean((0, 1)).reshape(-1, 4).mean(1)
        expected.append(received[order.argsort()])
    assert torch.allclose(found, torch.cat(expected), atol=1e-6)
    assert all(abs(float(part.sum()) * 4 - 1) < 1e-4 for part in expected)


def test_cells_of_a_tower_with_windows_come_back_in_raster_order() -> None:
    base = older_backbone().model
    batch = renderer().batch(mixed_samples(), with_answer=False)
    pixels, grid = batch["pixel_values"], batch["image_grid_thw"]
    caught = catch_block_input(base, pixels, grid)
    assert any(order.tolist() != sorted(order.tolist()) for order in caught.cell_order)
    seen: dict[str, Tensor] = {}
    hook = base.model.visual.merger.register_forward_hook(lambda _, __, out: seen.update(out=out))
    with torch.no_grad():
        pooled = base.model.get_image_features(pixels, grid, return_dict=True).pooler_output
    hook.remove()
    counts = [len(order) for order in caught.cell_order]
    for rows, order, raster in zip(
        seen["out"].split(counts), caught.cell_order, pooled, strict=True
    ):
        assert torch.equal(rows[order.argsort()], raster)


def test_attention_received_does_not_depend_on_how_queries_are_sliced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, key = drawn(2, 10, 4, seed=8), drawn(2, 10, 4, seed=9)
    whole = mean_received(query, key, scaling=0.5)
    monkeypatch.setattr("saccade.models.relevance.attention_scores.ELEMENTS_AT_ONCE", 60)
    assert torch.allclose(mean_received(query, key, scaling=0.5), whole)


def test_the_rest_is_averaged_into_the_target_with_the_most_similar_key() -> None:
    scores = torch.tensor([9.0, 1, 2, 8, 3, 1, 7, 0])
    keys = drawn(8, 3, seed=10)
    plan = plan_merge(scores, keys, kept=5)  # round(5 * 10 / 64) = 1 contextual token
    assert plan.targets.tolist() == [1] and plan.keep_M.nonzero()[:, 0].tolist() == [0, 1, 3, 4, 6]
    rows = drawn(8, 2, seed=11)
    merged = plan.merge(rows)
    assert torch.allclose(merged[1], rows[[1, 2, 5, 7]].mean(0))
    others = [0, 2, 3, 4, 5, 6, 7]
    assert torch.equal(merged[others], rows[others])


def test_cells_join_the_nearest_of_several_targets() -> None:
    scores, keys = torch.arange(40.0), F.normalize(drawn(40, 6, seed=12), dim=-1)
    plan = plan_merge(scores, keys, kept=20)  # 17 dominant, 3 contextual of the 23 others
    assert int(plan.keep_M.sum()) == 20 and plan.sources.tolist() == list(range(23))
    targets = plan.targets.tolist()
    assert targets == [0, 7, 15]
    for cell in range(23):
        nearest = max(targets, key=lambda t: float(keys[cell] @ keys[t]))
        joined = int(plan.weight_TR[:, cell].argmax())
        assert targets[joined] == (cell if cell in targets else nearest)
    assert torch.allclose(plan.weight_TR.sum(1), torch.ones(3))


# -- attention inside the language model ---------------------------------------------------------


def layers_by_hand(model: RelevanceModel, inputs: Any, keep_N: Tensor, first_late: int) -> Tensor:
    """Logits of the base with dropped keys masked from layer `first_late` on, layer by layer."""
    base, text = model.base, model.base.model.language_model
    hidden = base.get_input_embeddings()(inputs.input_ids_BS)
    image = inputs.input_ids_BS == model.markers.image
    hidden[image] = torch.cat(inputs.images.pooled)
    length = hidden.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    own = torch.eye(length, dtype=torch.bool)
    present = inputs.attention_mask_BS.bool()
    left = present.clone()
    left[image] = keep_N
    rotation = text.rotary_emb(hidden, inputs.positions_3BS)
    for index, layer in enumerate(text.layers):
        keys = left if index >= first_late else present
        visible = (keys[:, None, None] & causal) | own
        bias = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        hidden = layer(hidden, position_embeddings=rotation, attention_mask=bias)
        if index < len(inputs.images.deepstack):
            hidden[image] += torch.cat(inputs.images.deepstack[index])
    return base.lm_head(text.norm(hidden))


def attention_by_hand(model: RelevanceModel, inputs: Any, layer: int) -> Tensor:
    """What transformers itself reports, from the last token to each visual token."""
    text = model.base.model.language_model
    before = text.config._attn_implementation
    text.set_attn_implementation("eager")
    out = model.base.model(**inputs.forward_arguments(), output_attentions=True, use_cache=False)
    text.set_attn_implementation(before)
    image = inputs.input_ids_BS == model.markers.image
    return out.attentions[layer][:, :, -1].mean(1)[image]


def early(model: RelevanceModel, keep: float) -> tuple[Reduced, Tensor]:
    batch = renderer().batch(mixed_samples(), with_answer=False)
    assert (batch["attention_mask"] == 0).any(), "the batch should be padded"
    reduced = model.reduce(batch, arm="early_attention", keep=keep)
    maps = [image.keep_HW for image in reduced.images]
    return reduced, torch.cat([keep_HW.flatten() for keep_HW in maps if keep_HW is not None])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keep", [0.1, 0.5])
@torch.no_grad()
def test_dropping_inside_equals_masking_those_keys_in_the_later_layers(
    family: Callable[[], Backbone], keep: float
) -> None:
    model = relevance_model(family())
    reduced, keep_N = early(model, keep)
    first_late = flops.full_layers(model.config)
    attention_N = attention_by_hand(model, reduced.inputs, first_late - 1)
    cells = [image.full for image in reduced.images]
    kept = [image.kept for image in reduced.images]
    assert torch.equal(keep_N, top_k(attention_N, cells=cells, kept=kept))
    expected = layers_by_hand(model, reduced.inputs, keep_N, first_late)[:, -1]
    with reduced.during() as inside:
        found = model.base(**reduced.inputs.forward_arguments(), logits_to_keep=1).logits[:, -1]
    assert torch.equal(inside.keep_N, keep_N)
    assert float((found - expected).abs().max()) < 1e-4
    full = model.base(**reduced.inputs.forward_arguments(), logits_to_keep=1).logits[:, -1]
    assert float((full - expected).abs().max()) > 1e-3, "the hooks should be gone, and matter"


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cached_answers_equal_recomputation_with_masks(family: Callable[[], Backbone]) -> None:
    model = relevance_model(family())
    reduced, keep_N = early(model, 0.2)
    arguments = reduced.inputs.generation_arguments()
    with reduced.during():
        found = model.base.generate(
            **arguments, max_new_tokens=5, do_sample=False, eos_token_id=None
        )[:, reduced.inputs.input_ids_BS.shape[1] :]
    grown, new = reduced.inputs, []
    for _ in range(5):
        logits = layers_by_hand(model, grown, keep_N, flops.full_layers(model.config))
        token_B = logits[:, -1].argmax(-1)
        new.append(token_B)
        last = grown.positions_3BS[:, :, -1:] + 1
        grown = replace(
            grown,
            input_ids_BS=torch.cat([grown.input_ids_BS, token_B[:, None]], 1),
            attention_mask_BS=F.pad(grown.attention_mask_BS, (0, 1), value=1),
            positions_3BS=torch.cat([grown.positions_3BS, last], 2),
        )
    assert torch.equal(found, torch.stack(new, 1))


def test_later_layers_cache_only_what_is_left_and_are_counted_so() -> None:
    model = relevance_model()
    batch = renderer().batch([sample(0, (64, 96))], with_answer=False)
    reduced = model.reduce(batch, arm="early_attention", keep=0.25)
    with torch.no_grad(), reduced.during():
        out, measured = flops.count_flops(
            lambda: model.base(
                **reduced.inputs.forward_arguments(), use_cache=True, logits_to_keep=1
            )
        )
    (length,), (late,) = reduced.sequence_lengths, reduced.late_lengths or [0]
    sizes = [out.past_key_values.get_seq_length(layer) for layer in range(3)]
    assert sizes == [length, length, late] and late == length - 24 + 6
    counted = flops.language_flops(model.config, tokens=[length], late_tokens=[late])
    # choosing itself projects the keys of one layer once more
    assert counted < measured < 1.05 * counted
    assert flops.layer_tokens(model.config, tokens=length, late_tokens=late) == sum(sizes) / 3
    assert counted < flops.language_flops(model.config, tokens=[length])


def test_early_attention_refuses_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = relevance_model()
    batch = renderer().batch([sample(0, (64, 96))], with_answer=False)
    config = model.base.model.language_model.config
    monkeypatch.setattr(config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(InputError, match=r"model\.attention=sdpa"):
        model.reduce(batch, arm="early_attention", keep=0.25)


# -- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_peer_keeps_its_budget_and_answers_alike_alone_and_in_a_batch(
    family: Callable[[], Backbone], name: str
) -> None:
    model, render = relevance_model(family()), renderer()
    samples = mixed_samples()
    together = model.reduce(render.batch(samples, with_answer=False), arm=name, keep=0.3)
    grids = render.batch(samples, with_answer=False)["image_grid_thw"]
    budgets = [round(int(h * w) // 4 * 0.3) for _, h, w in grids.tolist()]
    assert [image.kept for image in together.images] == budgets
    answers = model.generate_reduced(together, max_new_tokens=3)
    first = 0
    for row, one in enumerate(samples):
        alone = model.reduce(render.batch([one], with_answer=False), arm=name, keep=0.3)
        for image, other in zip(alone.images, together.images[first:], strict=False):
            assert image.keep_HW is not None and other.keep_HW is not None
            assert torch.equal(image.keep_HW, other.keep_HW)
            assert int(image.keep_HW.sum()) == image.kept
        first += len(alone.images)
        answer = model.generate_reduced(alone, max_new_tokens=3)[0]
        assert torch.equal(answer, answers[row, : len(answer)])


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_with_the_whole_budget_reads_the_unmodified_inputs(name: str) -> None:
    model = relevance_model()
    batch = renderer().batch(mixed_samples(), with_answer=False)
    full = model.reduce(batch, arm="full").inputs.forward_arguments()
    ours = model.reduce(batch, arm=name, keep=1.0)
    with torch.no_grad(), ours.during():
        logits = model.base(**ours.inputs.forward_arguments()).logits
        assert torch.equal(logits, model.base(**full).logits)


def test_merged_tokens_keep_the_positions_and_every_deepstack_level_of_their_targets() -> None:
    model = relevance_model()
    batch = renderer().batch([sample(0, (128, 96))], with_answer=False)
    merged = model.reduce(batch, arm="vision_attention", keep=0.3)
    image, features = merged.images[0], model.encode(batch)
    assert image.keep_HW is not None and merged.inputs.images is not None
    whole = features.whole().images
    assert whole is not None
    keep_M = image.keep_HW.flatten()
    changed_K = (merged.inputs.images.pooled[0] != whole.pooled[0][keep_M]).any(1)
    assert 0 < int(changed_K.sum()) <= round(image.kept * 10 / 64)
    for ours, theirs in zip(merged.inputs.images.deepstack, whole.deepstack, strict=True):
        assert torch.equal((ours[0] != theirs[0][keep_M]).any(1), changed_K)
    own = merged.inputs.positions_3BS[:, merged.inputs.input_ids_BS == model.markers.image]
    every = features.inputs.positions_3BS[:, batch["input_ids"] == model.markers.image]
    assert torch.equal(own, every[:, keep_M])


def test_every_untrained_arm_is_one_that_any_run_can_be_compared_with() -> None:
    from saccade.evaluation.load import UNTRAINED_ARMS

    assert set(UNTRAINED_ARMS) == {name for name, info in ARMS.items() if not info.trained}
