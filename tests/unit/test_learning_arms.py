"""The learning arms and the variants of the selector: gradients, noise, what each one may read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.config.schema import SelectorConfig
from saccade.models.relevance.learning import (
    Noise,
    add_noise,
    drown,
    noisy_answer_loss,
    temperature_at,
)
from saccade.models.relevance.model import RelevanceModel, VisualFeatures
from saccade.models.relevance.multiply import multiplied_answer_loss
from saccade.models.relevance.prune import ImageTokens
from tests.tiny_models import (
    mixed_samples,
    random_backbone,
    relevance_model,
    renderer,
    scene_samples,
)


def noise_for(batch: dict, *, step: int = 7, temperature: float = 0.5) -> Noise:
    return Noise(temperature=temperature, seed=1, step=step, sample_ids=batch["sample_ids"])


def loss_of(model: RelevanceModel, batch: dict, *, learning: str) -> torch.Tensor:
    features = model.encode(batch)
    if learning == "distill":
        return model.imitation_loss(features, denominator=8.0, keep=0.2)
    if learning == "noise":
        noise = noise_for(batch)
        return noisy_answer_loss(model, features, keep=0.2, denominator=4.0, noise=noise)[0].total
    if learning == "multiply":
        return multiplied_answer_loss(model, features, keep=0.2, denominator=4.0, hardness=1.0)[
            0
        ].total
    return model.answer_loss(features, keep=0.2, denominator=4.0)[0].total


@pytest.mark.parametrize("learning", ["attention_gate", "noise", "multiply", "distill"])
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"textures": "rgb"},
        {"balance": "thirds"},
        {"tensions": False},
        {"scores": ["information"], "tensions": False, "textures": "rgb"},
        {"scores": ["participation"], "tensions": False},
    ],
)
def test_every_trainable_tensor_of_every_arm_and_variant_gets_a_gradient(
    learning: str, variant: dict
) -> None:
    model = relevance_model(learning=learning, **variant).train()
    batch = renderer().batch(scene_samples(4), with_answer=True)
    loss_of(model, batch, learning=learning).backward()
    trainable = {n: p for n, p in model.selector.named_parameters() if p.requires_grad}
    dead = [n for n, p in trainable.items() if p.grad is None or not p.grad.abs().sum() > 0]
    # the teacher's scale is learned in the warm start that every arm begins with
    assert dead == ([] if learning == "distill" else ["balance.log_scale"])
    assert all(p.grad.isfinite().all() for p in trainable.values() if p.grad is not None)
    assert all(p.grad is None for p in model.base.parameters())


def gates_and_noisy(gate: float, *, step: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randn(4000, 6, generator=torch.Generator().manual_seed(5)) * 3 + 1
    images = ImageTokens(pooled=(rows,), deepstack=((rows * 0.1,),))
    noise = Noise(temperature=1.0, seed=0, step=step, sample_ids=["a"])
    return rows, add_noise(
        images, [torch.full((4000,), gate)], names=["a/0"], noise=noise
    ).deepstack[0][0] * 10


@pytest.mark.parametrize("gate", [0.0, 0.3, 0.8])
def test_noise_keeps_the_variance_of_every_channel_at_any_gate(gate: float) -> None:
    rows, noisy = gates_and_noisy(gate)
    assert torch.allclose(noisy.var(0), rows.var(0), rtol=0.1)


def test_an_open_gate_changes_nothing_and_a_closed_one_leaves_nothing() -> None:
    rows, noisy = gates_and_noisy(1.0)
    assert torch.allclose(rows, noisy, atol=0.05)
    rows, noisy = gates_and_noisy(0.0)
    both = torch.stack([rows.flatten() - rows.mean(), noisy.flatten() - noisy.mean()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.05


def test_noise_differs_from_step_to_step_and_repeats_for_the_same_step() -> None:
    assert torch.equal(gates_and_noisy(0.2)[1], gates_and_noisy(0.2)[1])
    assert not torch.allclose(gates_and_noisy(0.2)[1], gates_and_noisy(0.2, step=4)[1])


def test_the_noise_of_a_sample_does_not_depend_on_its_batch_mates() -> None:
    model, render = relevance_model(learning="noise").train(), renderer()
    samples = mixed_samples()
    together = noisy_tokens(model, render.batch(samples, with_answer=True))
    alone = [
        rows
        for one in samples
        for rows in noisy_tokens(model, render.batch([one], with_answer=True))
    ]
    assert len(together) == len(alone) == 8  # four images: tokens, and their first level
    for a, b in zip(sorted(together, key=float), sorted(alone, key=float), strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-4)


def noisy_tokens(model: RelevanceModel, batch: dict) -> list[torch.Tensor]:
    with torch.no_grad():
        chosen = drown(model, model.encode(batch), keep=0.3, noise=noise_for(batch))
    images = chosen.inputs.images
    assert images is not None
    return [rows.norm() for rows in (*images.pooled, *images.deepstack[0])]


def test_with_everything_kept_noise_changes_no_logit_noticeably() -> None:
    model = relevance_model(learning="noise").train()
    batch = renderer().batch(scene_samples(2), with_answer=True)
    features = model.encode(batch)
    with torch.no_grad():
        chosen = drown(model, features, keep=1.0, noise=noise_for(batch))
        noisy = model.base(**chosen.arguments).logits
        plain = model.base(**features.whole().forward_arguments()).logits
    assert float((noisy - plain).abs().max()) < 0.05


@pytest.mark.parametrize("placement", ["pixels", "glance"])
def test_noise_teaches_selectors_that_look_before_the_tower_too(placement: str) -> None:
    model = relevance_model(learning="noise", placement=placement).train()
    batch = renderer().batch(scene_samples(3), with_answer=True)
    loss_of(model, batch, learning="noise").backward()
    grads = [p.grad for p in model.selector.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


def test_the_noise_gate_hardens_geometrically_after_the_warm_start() -> None:
    config = resolve(
        overrides=["selector.learning=noise", "selector.distill_steps=10", "training.steps=21"]
    ).config
    found = [temperature_at(config, step=step) for step in (0, 10, 15, 20)]
    assert found == pytest.approx([2.0, 2.0, (2.0 * 0.1) ** 0.5, 0.1])


def changed_textures(features: VisualFeatures) -> VisualFeatures:
    """The same cells, with everything that is computed from their pixels replaced."""
    textures = features.textures
    channels = torch.cat([textures.channels_NC[:, :3], 1 - textures.channels_NC[:, 3:]], dim=1)
    other = replace(
        textures,
        channels_NC=channels,
        bits_N=textures.bits_N.flip(0),
        rarity_N=textures.rarity_N.flip(0),
    )
    return replace(features, textures=other)


@pytest.mark.parametrize("textures", ["all", "rgb"])
def test_rgb_reads_colours_and_nothing_derived_from_pixels(textures: str) -> None:
    model = relevance_model(textures=textures)
    features = model.encode(renderer().batch(scene_samples(2), with_answer=False))
    with torch.no_grad():
        before = model.score(features).logits_N
        after = model.score(changed_textures(features)).logits_N
        brighter = replace(features.textures, channels_NC=features.textures.channels_NC * 0.5)
        dimmed = model.score(replace(features, textures=brighter)).logits_N
    assert torch.equal(before, after) == (textures == "rgb")
    assert not torch.equal(before, dimmed)


def test_rgb_is_refused_where_textures_are_all_there_is() -> None:
    with pytest.raises(ValueError, match="needs placement=features"):
        SelectorConfig(textures="rgb", placement="pixels")
    with pytest.raises(InputError, match="textures=rgb needs"):
        resolve(overrides=["selector.textures=rgb", "selector.placement=glance"])


@pytest.mark.parametrize("learning", ["noise", "multiply", "distill"])
def test_an_adaptive_budget_is_refused_where_nothing_teaches_it(learning: str) -> None:
    with pytest.raises(InputError, match="needs learning=attention_gate"):
        resolve(overrides=[f"selector.learning={learning}", "selector.adaptive=2"])


def test_thirds_weigh_every_score_alike_and_have_nothing_to_learn_there() -> None:
    model = relevance_model(balance="thirds")
    features = model.encode(renderer().batch(scene_samples(2), with_answer=False))
    weights = model.score(features).weights
    assert [float(w.min()) for w in weights.values()] == pytest.approx([1 / 3] * 3)
    assert not [name for name in model.selector.state_dict() if name.startswith("balance.weigh")]


@pytest.mark.parametrize(
    "variant", [{"textures": "rgb"}, {"balance": "thirds"}, {"learning": "distill"}]
)
def test_a_variant_comes_back_from_disk_as_it_was(variant: dict, tmp_path: Path) -> None:
    model = relevance_model(**variant)
    model.save_pretrained(tmp_path / "model")
    again = RelevanceModel.from_pretrained(tmp_path / "model", backbone=random_backbone())
    features = model.encode(renderer().batch(scene_samples(2), with_answer=False))
    assert torch.equal(model.score(features).logits_N, again.score(features).logits_N)
