"""The selector can learn and cannot cheat.

Every trainable tensor gets a finite, non-zero gradient through both losses and changes the loss;
an image's scores depend on nothing but that image and the user's own words.
"""

from __future__ import annotations

import pytest
import torch

from saccade.data.chat import ChatMarkers, user_text_mask
from saccade.data.samples import Sample
from saccade.models.relevance.gates import soft_top_k
from saccade.models.relevance.model import RelevanceModel
from tests.tiny_models import (
    mixed_samples,
    relevance_model,
    renderer,
    sample,
    scene_samples,
    tensions_of,
)


def scores(model: RelevanceModel, batch: dict) -> list[torch.Tensor]:
    """Selector logits per image."""
    features = model.encode(batch)
    with torch.no_grad():
        return list(model.score(features).logits_N.split(features.grid.counts))


@pytest.mark.parametrize(
    "active",
    [
        ["information", "salience", "participation"],
        ["participation"],
        ["information", "participation"],
    ],
)
def test_every_trainable_tensor_gets_a_finite_non_zero_gradient_from_the_answers(
    active: list[str],
) -> None:
    model = relevance_model(scores=active).train()
    batch = renderer().batch(scene_samples(4), with_answer=True)
    loss, _ = model.answer_loss(model.encode(batch), keep=0.2, denominator=4.0)
    loss.total.backward()
    check_gradients(model)


def test_every_trainable_tensor_gets_a_finite_non_zero_gradient_from_imitation() -> None:
    model = relevance_model().train()
    batch = renderer().batch(scene_samples(4), with_answer=True)
    model.imitation_loss(model.encode(batch), denominator=8.0).backward()
    check_gradients(model, but=("balance.tensions", "balance.code"))


def test_the_score_that_learns_is_taught_even_when_the_balance_ignores_it() -> None:
    model = relevance_model().train()
    with torch.no_grad():
        dict(model.selector.named_parameters())["balance.weigh.out.bias"][1] = 200.0
    batch = renderer().batch(scene_samples(4), with_answer=True)
    model.imitation_loss(model.encode(batch), denominator=8.0).backward()
    gradient = dict(model.selector.named_parameters())["scores.participation.cell.weight"].grad
    assert gradient is not None and gradient.abs().sum() > 1e-4


def test_the_forward_pass_in_training_mode_gives_the_selector_a_gradient() -> None:
    model = relevance_model().train()
    batch = renderer().batch(scene_samples(3), with_answer=True)
    batch.pop("sample_ids")
    model(**batch, keep=0.2).loss.backward()
    check_gradients(model)


def check_gradients(model: RelevanceModel, *, but: tuple[str, ...] = ()) -> None:
    named = dict(model.selector.named_parameters())
    assert all(parameter.requires_grad for parameter in named.values())
    without = [n for n, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0]
    # each loss has parameters of its own: the teacher's scale, and the tensions for the answers
    but = but or ("balance.log_scale",)
    assert [name for name in without if not name.startswith(but)] == []
    assert all(p.grad.isfinite().all() for p in named.values() if p.grad is not None)
    assert all(p.grad is None for p in model.base.parameters())


def test_changing_any_trainable_tensor_changes_the_scores() -> None:
    model = relevance_model()
    batch = renderer().batch(scene_samples(3), with_answer=False)
    features = model.encode(batch)

    def outcome() -> torch.Tensor:
        scored = model.score(features)
        return torch.cat([scored.logits_N, scored.plain_N]).detach()

    before = outcome()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.selector.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
            after = outcome()
            parameter.copy_(kept)
        assert not torch.allclose(before, after, atol=1e-6), f"{name} does nothing"


@pytest.mark.parametrize("tension", [0, 1, 2])
def test_each_tension_reorders_cells(tension: int) -> None:
    model = relevance_model()
    batch = renderer().batch(scene_samples(3), with_answer=False)
    features = model.encode(batch)
    before = model.score(features).logits_N.detach().argsort()
    with torch.no_grad():
        tensions_of(model).bias[tension] = 4.0
    after = model.score(features)
    assert not torch.equal(before, after.logits_N.argsort())
    assert float(after.tension_I3[:, tension].detach().min()) > 0.9


def test_scores_of_an_image_do_not_change_with_its_batch_mates() -> None:
    model, render = relevance_model(), renderer()
    samples = mixed_samples()
    together = scores(model, render.batch(samples, with_answer=False))
    alone = [s for one in samples for s in scores(model, render.batch([one], with_answer=False))]
    for a, b in zip(together, alone, strict=True):
        assert float((a - b).abs().max()) < 1e-5


def test_identical_images_in_a_batch_are_encoded_once_and_scored_alike() -> None:
    model, render = relevance_model(), renderer()
    one = sample(0, (64, 96))
    other = Sample(id="b", question="how many?", answers=("2",), images=one.images)
    encoded = []
    inner = model.base.model.get_image_features

    def counting(pixels: torch.Tensor, grid: torch.Tensor, **kwargs: object) -> object:
        encoded.append(len(grid))
        return inner(pixels, grid, **kwargs)

    model.base.model.get_image_features = counting
    try:
        together = scores(model, render.batch([one, other], with_answer=False))
    finally:
        del model.base.model.get_image_features
    assert encoded == [1]
    alone = scores(model, render.batch([other], with_answer=False))
    assert float((together[1] - alone[0]).abs().max()) < 1e-5


def test_the_selector_cannot_see_the_answer() -> None:
    model, render = relevance_model(), renderer()
    asked = sample(0, (64, 96))
    other = Sample(
        id="x", question=asked.question, answers=("nothing like it",), images=asked.images
    )
    (a,), (b,), (c,) = (
        scores(model, render.batch([asked], with_answer=True)),
        scores(model, render.batch([other], with_answer=True)),
        scores(model, render.batch([asked], with_answer=False)),
    )
    assert torch.equal(a, b) and torch.equal(a, c)


def test_the_selector_cannot_see_padding_or_the_template() -> None:
    model, render = relevance_model(), renderer()
    batch = render.batch([sample(0, (64, 96))], with_answer=False)
    (before,) = scores(model, batch)
    ids = batch["input_ids"]
    system = torch.tensor([render.tokenizer("<|im_start|>system\nbe brief<|im_end|>\n").input_ids])
    pads = torch.full((1, 5), render.markers.pad)
    for extra, mask in ((pads, 0), (system, 1)):
        longer = dict(batch)
        longer["input_ids"] = torch.cat([extra, ids], 1)
        longer["attention_mask"] = torch.cat(
            [torch.full_like(extra, mask), batch["attention_mask"]], 1
        )
        longer["mm_token_type_ids"] = (longer["input_ids"] == render.markers.image).int()
        (after,) = scores(model, longer)
        assert torch.equal(before, after)


def test_the_selector_does_see_the_question() -> None:
    model, render = relevance_model(), renderer()
    a = sample(0, (64, 96))
    b = Sample(id="x", question="how many moons are there?", answers=a.answers, images=a.images)
    (first,) = scores(model, render.batch([a], with_answer=False))
    (second,) = scores(model, render.batch([b], with_answer=False))
    assert not torch.allclose(first, second, atol=1e-3)


def test_only_the_users_own_words_are_marked() -> None:
    render = renderer()
    chat = Sample(
        id="t", question="and the other one?", answers=("blue",), images=sample(0, (64, 64)).images,
        turns=(("what color is it?", "red"),),
    )  # fmt: skip
    batch = render.batch([chat, sample(1, (64, 64))], with_answer=True)
    mask = user_text_mask(batch["input_ids"], markers=ChatMarkers.of(render.tokenizer))
    marked = render.tokenizer.decode(batch["input_ids"][0][mask[0]])
    assert marked == "what color is it?and the other one?"


def test_an_image_without_a_question_is_still_scored() -> None:
    model, render = relevance_model(), renderer()
    batch = render.batch([sample(0, (64, 96), question="x")], with_answer=False)
    mask = user_text_mask(batch["input_ids"], markers=render.markers)
    batch["input_ids"] = batch["input_ids"].masked_fill(mask, render.tokenizer.eos_token_id)
    (logits,) = scores(model, batch)
    assert logits.isfinite().all()


def test_soft_top_k_sums_to_k_and_its_gradient_is_the_numerical_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, generator=generator, requires_grad=True)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 6:] = False
    kept = torch.tensor([3, 2])
    half = torch.full((2,), 0.5)
    gates = soft_top_k(logits, valid_IM=valid, kept_I=kept, temperature_I=half)
    assert torch.allclose(gates.sum(1), kept.float(), atol=1e-3)
    assert (gates[1, 6:] == 0).all()
    weight = torch.randn(2, 9, generator=generator)
    (gates * weight).sum().backward()
    assert logits.grad is not None
    for image, cell in [(0, 0), (0, 5), (1, 2)]:
        step = torch.zeros(2, 9)
        step[image, cell] = 1e-2
        up, down = (
            soft_top_k(
                logits.detach() + sign * step, valid_IM=valid, kept_I=kept, temperature_I=half
            )
            for sign in (1, -1)
        )
        numeric = float(((up - down) * weight).sum()) / 2e-2
        assert abs(numeric - float(logits.grad[image, cell])) < 1e-2


def test_a_saved_selector_gives_the_same_scores_after_loading(tmp_path) -> None:
    model, render = relevance_model(), renderer()
    model.save_pretrained(tmp_path / "saved")
    again = RelevanceModel.from_pretrained(tmp_path / "saved", backbone=model.backbone)
    batch = render.batch([sample(0, (64, 96))], with_answer=False)
    assert torch.equal(scores(model, batch)[0], scores(again, batch)[0])
